"""The recorder: every ATen call of a step, and every storage from allocation to release, in the order eager PyTorch makes them.

It sits below autograd (a ``TorchDispatchMode``), runs each call on the meta device and keeps a weak reference to each new storage.
Python and the autograd engine drop their references exactly as on a GPU, so releases come when they would there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch._C import _current_autograd_node
from torch._C._autograd import _get_sequence_nr
from torch.utils._python_dispatch import TorchDispatchMode

from graphmem.timeline.events import Event, Kind, Phase, Value, ValueRef, refs_in
from graphmem.tracing.autocast import Autocast
from graphmem.tracing.device import Device
from graphmem.tracing.drafts import BlockDraft, CallDraft, Held
from graphmem.tracing.known import KnownValues, tensors_in
from graphmem.tracing.modules import ModuleStack
from graphmem.tracing.operators import Operator, operator_table
from graphmem.tracing.ownership import ownership_of, sole_ownership
from graphmem.tracing.results import Results
from graphmem.tracing.rules.registry import Free, OpCall, Out, Registry
from graphmem.tracing.source import SourceLines, render
from graphmem.tracing.values import Values


class Recorder(TorchDispatchMode):
    """Records what runs while it is active. One recorder sees one step, or several in a row."""

    def __init__(
        self, device: Device, registry: Registry, modules: ModuleStack, known: KnownValues, routing: str = "balanced"
    ) -> None:
        super().__init__()
        self.device, self.modules, self.known = device, modules, known
        self.phase: Phase = "forward"
        self.step = 0
        self.blocks: list[BlockDraft] = []
        self.calls: list[CallDraft] = []
        self.events: list[Event] = []
        self.values: list[Value] = []
        #: Values of the start state (parameters, buffers, inputs), by name.
        self.placeholders: dict[str, int] = {}
        #: What had to be assumed because it depends on float data, in words → where it was needed first.
        self.assumptions: dict[str, str] = {}
        self._operators = operator_table(registry, device)
        self._held: dict[int, Held] = {}
        self._workspaces: dict[tuple[str, bool], int] = {}
        #: Sequence number of a backward node → the forward operation that it differentiates.
        self._forward_of: dict[int, int] = {}
        self._sequence = -1
        self._lines = SourceLines()
        self._routing = routing
        self._closed = False
        #: Values of the forward operation that is being differentiated: its saved tensors are among them.
        self._near: Sequence[int] = ()
        #: The operation that raised last, and its exception: whoever catches that one may say where it was.
        self.failed: tuple[Exception, CallDraft] | None = None
        self._sole = sole_ownership()
        self._results = Results()
        #: What `torch.autocast` does, for backward inside one of its regions; set by whoever activates both.
        self.autocast: Autocast | None = None

    # -- the start state ------------------------------------------------------------------------------------------

    def start_with(self, tensor: torch.Tensor, name: str, kind: Kind, module: str) -> None:
        """A tensor that is on the device before the step begins. A storage is counted once, under its first name."""
        storage = tensor.untyped_storage()
        held = self._held.get(storage._cdata)
        if held is None:
            held = self._hold(storage)
            if held.nbytes:
                held.block = self._allocate(held.nbytes, kind, module, tensor, name)
        self.placeholders[name] = self._new_value(held, tensor)

    def close(self) -> None:
        """The step is over: what Python drops from here on is not part of it."""
        self._closed = True

    def mark(self, tensor: torch.Tensor, kind: Kind, owner: torch.Tensor | None = None) -> None:
        """A tensor turned out to be of this kind; its block takes the name and module of its owner."""
        held = self._held.get(tensor.untyped_storage()._cdata) if tensor.device.type == "meta" else None
        if held is None or held.block is None:
            return
        draft = self.blocks[held.block]
        draft.kind = kind
        if (
            owner is not None
            and (of := self._held.get(owner.untyped_storage()._cdata)) is not None
            and of.block is not None
        ):
            draft.module, draft.name = self.blocks[of.block].module, self.blocks[of.block].name

    def mark_temporary(self, tensor: torch.Tensor, kind: Kind) -> None:
        """`mark`, unless its block is known to be something else already."""
        held = self._held.get(tensor.untyped_storage()._cdata) if tensor.device.type == "meta" else None
        if held is not None and held.block is not None and self.blocks[held.block].kind == "temporary":
            self.blocks[held.block].kind = kind

    def saved(self, sequence: int, tensors: list[torch.Tensor]) -> None:
        """The backward function with this sequence number keeps these tensors."""
        index = self._forward_of.get(sequence)
        kept = [
            tensor
            for tensor in tensors
            if tensor.device.type == "meta" and tensor.untyped_storage()._cdata in self._held
        ]
        for tensor in kept:
            self.mark_temporary(tensor, "activation")
        if index is not None and kept:
            call = self.calls[index]
            self._near = [*refs_in((call.args, tuple(call.kwargs.values()))), *call.outputs]
            call.saved = tuple(dict.fromkeys(self._value_of(tensor) for tensor in kept))

    # -- one call -------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self._dispatch(func, args, kwargs or {})

    def _dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operator = self._operators[func]
        inputs = [value for value in args if isinstance(value, torch.Tensor)]
        if operator.takes_lists or kwargs:
            inputs = tensors_in(args) + tensors_in(tuple(kwargs.values()))
        on_device = next((t for t in inputs if t.device.type == "meta"), None)
        if on_device is None and getattr(kwargs.get("device"), "type", "cpu") != "meta":
            return func(*args, **kwargs)  # host memory, run for real
        if operator.composite:
            with self:
                return func.decompose(*args, **kwargs)
        if self.autocast is not None and self.autocast.is_open and _current_autograd_node() is not None:
            with self:
                args, kwargs = self.autocast.cast_for(operator.name.split(".")[1], args, kwargs)
        call = self._describe(operator, args, kwargs)
        if call.phase == "optimizer" and not call.module and on_device is not None and not operator.takes_lists:
            call.module = self._owner(on_device)
        shared = None
        if operator.inplace is not None and call.node:
            shared = operator.inplace.apply(OpCall(operator.name, args, kwargs, self.device, call.node), self._owned)
        try:
            result = self._run(operator, func, args, kwargs, inputs, call)
        except Exception as error:
            self.failed = (error, call)
            raise
        self._account(operator, args, kwargs, result, call, shared)
        if operator.mutates:
            self._resized(inputs)
        return result

    def _describe(self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallDraft:
        """The call as it will be recorded, but for its outputs; appended, so that what happens from now on is its doing."""
        line = self._lines.caller(sys._getframe(3))
        call = CallDraft(operator.name, self.modules.current, self.phase, self.step, line)
        self._near = ()
        node = _current_autograd_node()
        if node is None or self.modules.depth:
            if node is not None:  # a module's forward inside backward: checkpointing runs it again
                call.phase = "recompute"
            sequence = _get_sequence_nr()
            if sequence != self._sequence:
                self._sequence = sequence
                self._forward_of[sequence - 1] = len(self.calls)
        else:
            self._describe_backward(call, node)
        call.args = tuple([self._argument(value) for value in args])
        call.kwargs = {key: self._argument(value) for key, value in kwargs.items()} if kwargs else kwargs
        self.calls.append(call)
        return call

    def _describe_backward(self, call: CallDraft, node: Any) -> None:
        call.phase = "backward"
        call.node = node.name().removeprefix("torch::autograd::")
        forward = self._forward_of.get(node._sequence_nr())
        if forward is not None:
            differentiated = self.calls[forward]
            call.module, call.line = differentiated.module, differentiated.line
            # Its saved tensors come back as new objects, over a storage that other views share.
            self._near = [
                *refs_in((differentiated.args, tuple(differentiated.kwargs.values()))),
                *differentiated.outputs,
            ]
        elif (variable := getattr(node, "variable", None)) is not None:
            call.module, call.line = self._owner(variable), None

    def _owner(self, parameter: torch.Tensor) -> str:
        held = self._held.get(parameter.untyped_storage()._cdata)
        return self.blocks[held.block].module if held is not None and held.block is not None else ""

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return ValueRef(self._value_of(value))
        if isinstance(value, list | tuple):
            return type(value)([self._argument(item) for item in value])
        return value

    def _run(
        self,
        operator: Operator,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[Any],
        call: CallDraft,
    ) -> Any:
        if operator.data is not None:
            described = OpCall(operator.name, args, kwargs, self.device, call.node)
            result = operator.data.apply(described, Values(func, self.known, self._assume, self._routing))
            if result is not NotImplemented:
                return result
        follow = None
        if not operator.view and (not inputs or operator.shape_only or self._any_known(inputs)):
            follow = self.known.inputs(func, args, kwargs)
        if operator.output is not None:
            result = operator.output.apply(OpCall(operator.name, args, kwargs, self.device, call.node))
        elif operator.repeats:
            result = self._repeated(func, args, kwargs, call)
        else:
            result = func(*args, **kwargs)
        if follow is not None:
            self.known.follow(func, follow, result, operator.mutates)
        elif operator.mutates:
            for tensor in operator.mutated(args, kwargs):
                self.known.forget(tensor.untyped_storage()._cdata)
        return result

    def _repeated(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], call: CallDraft) -> Any:
        """The call's result, worked out only where no call of the same geometry was seen."""
        key = self._results.signature(func, call.args, call.kwargs, self.values)
        result = NotImplemented if key is None else self._results.recall(key, args)
        if result is NotImplemented:
            result = func(*args, **kwargs)
            if key is not None:
                self._results.learn(key, args, result)
        return result

    def _any_known(self, inputs: list[torch.Tensor]) -> bool:
        return all(self.known.has(tensor) for tensor in inputs)

    def _assume(self, text: str) -> None:
        """Note an assumption, with the place that needs it."""
        call = self.calls[-1]
        where = f"{call.module or 'the step'}, {call.name}" + (f" ({render(call.line)})" if call.line else "")
        self.assumptions.setdefault(text, where)

    # -- what it allocated ----------------------------------------------------------------------------------------

    def _account(
        self,
        operator: Operator,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        call: CallDraft,
        shared: Any,
    ) -> None:
        """Events of the scratch memory and of the new storages among the outputs, in the kernel's order."""
        outputs = [result] if isinstance(result, torch.Tensor) else tensors_in(result)
        scratch = None
        if operator.scratch is not None:
            scratch = operator.scratch.apply(OpCall(operator.name, args, kwargs, self.device, call.node, result))
        if scratch is None:
            owners = self._owners(operator, args, len(outputs))
            call.outputs = tuple([self._output(t, shared, owner) for t, owner in zip(outputs, owners, strict=True)])
            if call.node == "AccumulateGrad":
                self._gradients(outputs)
            return
        for position in scratch.host:
            self._hold(outputs[position].untyped_storage())
        if scratch.program:
            self._perform(scratch.program, outputs, shared, call)
            return
        temporary = [self._scratch(nbytes, call) for nbytes in scratch.before if nbytes]
        order = scratch.order or range(len(outputs))
        indices = {position: self._output(outputs[position], shared) for position in order}
        call.outputs = tuple([indices[position] for position in range(len(outputs))])
        for library, nbytes in scratch.workspace:  # a kernel asks its library for it after making its outputs
            self._workspace(library, nbytes)
        temporary += [self._scratch(nbytes, call) for nbytes in scratch.after if nbytes]
        for block in reversed(temporary):
            self.events.append(Event(False, block, len(self.calls) - 1))

    def _owners(self, operator: Operator, args: tuple[Any, ...], count: int) -> list[str]:
        """The module each output belongs to: the running one, or, of a foreach operation, that of the tensor it is made from."""
        if self.phase == "optimizer" and operator.takes_lists and args and len(args[0]) == count:
            return [self._owner(tensor) for tensor in args[0]]
        return [self.calls[-1].module] * count

    def _perform(
        self, program: tuple[int | Out | Free, ...], outputs: list[torch.Tensor], shared: Any, call: CallDraft
    ) -> None:
        """The steps of a kernel that takes and frees memory between its outputs."""
        taken: list[int | None] = []
        indices: dict[int, int] = {}
        for step in program:
            if isinstance(step, Out):
                indices[step.position] = self._output(outputs[step.position], shared)
            elif isinstance(step, Free):
                self._drop(taken[step.taken])
                taken[step.taken] = None
            else:
                taken.append(self._scratch(step, call) if step else None)
        call.outputs = tuple(
            [indices[i] if i in indices else self._output(tensor, shared) for i, tensor in enumerate(outputs)]
        )
        for block in reversed(taken):
            self._drop(block)

    def _gradients(self, outputs: list[torch.Tensor]) -> None:
        """What AccumulateGrad keeps, by stealing or copying, is the parameter's gradient from now on."""
        parameter = getattr(_current_autograd_node(), "variable", None)
        for tensor in outputs:
            if parameter is not None and tensor.shape == parameter.shape:
                self.mark(tensor, "gradient", parameter)

    def _output(self, tensor: torch.Tensor, shared: torch.Tensor | None, owner: str | None = None) -> int:
        if tensor.device.type != "meta":
            return self._host_value(tensor)
        storage = tensor.untyped_storage()
        held = self._held.get(storage._cdata)
        if held is None:
            held = self._hold(storage)
            if shared is not None:
                held.block = self._held[shared.untyped_storage()._cdata].block
                if held.block is not None:
                    self.blocks[held.block].holders += 1
            elif held.nbytes:
                module = self.calls[-1].module if owner is None else owner
                held.block = self._allocate(held.nbytes, "temporary", module, tensor)
        return self._new_value(held, tensor)

    def _allocate(self, nbytes: int, kind: Kind, module: str, tensor: torch.Tensor | None, name: str = "") -> int:
        op = len(self.calls) - 1 if self.calls else None
        shape = tuple(tensor.shape) if tensor is not None else ()
        dtype = _dtype_name(tensor.dtype) if tensor is not None else "uint8"
        self.blocks.append(BlockDraft(nbytes, kind, op, module, shape, dtype, name))
        self.events.append(Event(True, len(self.blocks) - 1, op))
        return len(self.blocks) - 1

    def _scratch(self, nbytes: int, call: CallDraft) -> int:
        return self._allocate(nbytes, "temporary", call.module, None, f"scratch of {call.name}")

    def _workspace(self, library: str, nbytes: int) -> None:
        """A library's handle is per thread, and backward runs on a thread of its own."""
        key = (library, self.calls[-1].phase in ("backward", "recompute"))
        if key not in self._workspaces:
            self._workspaces[key] = self._allocate(nbytes, "workspace", "", None, library)

    def _hold(self, storage: torch.UntypedStorage) -> Held:
        held = Held(storage, self._released)
        held.key, held.nbytes, held.values, held.block = storage._cdata, storage.nbytes(), {}, None
        self._held[held.key] = held
        return held

    def _released(self, held: Held) -> None:
        if self._closed:
            return
        if self._held.get(held.key) is held:
            del self._held[held.key]
            self.known.forget(held.key)
        self._drop(held.block)

    def _drop(self, block: int | None) -> None:
        if block is None:
            return
        draft = self.blocks[block]
        draft.holders -= 1
        if draft.holders == 0:
            self.events.append(Event(False, block, len(self.calls) - 1 if self.calls else None))

    def _resized(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            if tensor.device.type == "meta":
                self.resized(tensor.untyped_storage(), tensor)

    def resized(self, storage: torch.UntypedStorage, tensor: torch.Tensor | None = None) -> None:
        """A storage may have another size now: CUDA then allocates anew, copies, and frees the old memory."""
        held = self._held.get(storage._cdata)
        if held is None or held.nbytes == storage.nbytes():
            return
        before, held.nbytes, held.block = held.block, storage.nbytes(), None
        if held.nbytes:
            draft = self.blocks[before] if before is not None else None
            kind = draft.kind if draft is not None else "temporary"
            module = draft.module if draft is not None else self.modules.current
            held.block = self._allocate(held.nbytes, kind, module, tensor, draft.name if draft is not None else "")
        self._drop(before)
        self.known.forget(held.key)

    # -- values ---------------------------------------------------------------------------------------------------

    def _new_value(self, held: Held, tensor: torch.Tensor) -> int:
        shape, stride = tensor.size(), tensor.stride()
        geometry, index = (shape, stride, tensor.storage_offset()), len(self.values)
        if geometry not in held.values or not self.calls or self.calls[-1].name != "aten.detach.default":
            # Autograd detaches what it saves; whoever uses the tensor afterwards means the original.
            held.values[geometry] = index
        self.values.append(Value(tuple(shape), stride, _dtype_name(tensor.dtype), held.block))
        return index

    def _host_value(self, tensor: torch.Tensor) -> int:
        self.values.append(Value(tuple(tensor.shape), tensor.stride(), _dtype_name(tensor.dtype), None))
        return len(self.values) - 1

    def _value_of(self, tensor: torch.Tensor) -> int:
        if tensor.device.type != "meta":
            return self._host_value(tensor)
        storage = tensor.untyped_storage()
        held = self._held.get(storage._cdata)
        if held is None:  # made behind the recorder's back; it is on the device from here on
            held = self._hold(storage)
            if held.nbytes:
                held.block = self._allocate(held.nbytes, "temporary", self.modules.current, tensor)
        for index in self._near:
            value = self.values[index]
            if value.block == held.block and value.shape == tensor.size() and value.stride == tensor.stride():
                return index
        found = held.values.get((tensor.size(), tensor.stride(), tensor.storage_offset()))
        return self._new_value(held, tensor) if found is None else found

    def _owned(self, tensor: torch.Tensor) -> bool:
        """Nobody but the autograd engine holds this tensor or its storage."""
        return ownership_of(tensor) == self._sole


_DTYPES: dict[torch.dtype, str] = {}


def _dtype_name(dtype: torch.dtype) -> str:
    name = _DTYPES.get(dtype)
    if name is None:
        name = _DTYPES[dtype] = str(dtype).removeprefix("torch.")
    return name
