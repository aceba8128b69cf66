"""The recorder: every ATen call of a step, run on the meta device and written down.

It sits below autograd (a ``TorchDispatchMode``). Python and the autograd engine drop their references exactly as on a GPU, so the
releases that the ledger hears of come when they would there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch._C import _current_autograd_node
from torch._C._autograd import _get_sequence_nr
from torch.utils._python_dispatch import TorchDispatchMode

from graphmem.timeline.events import Phase, ValueRef
from graphmem.tracing.autocast import Autocast
from graphmem.tracing.collectives import tensors_of, written
from graphmem.tracing.device import Device
from graphmem.tracing.drafts import CallDraft
from graphmem.tracing.known import KnownValues, tensors_in
from graphmem.tracing.ledger import Ledger
from graphmem.tracing.modules import ModuleStack
from graphmem.tracing.operators import Operator, operator_table
from graphmem.tracing.ownership import ownership_of, sole_ownership
from graphmem.tracing.results import Results
from graphmem.tracing.rules.registry import Free, Kept, OpCall, Out, Registry, Scratch, Step, steps_of
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
        self.ledger = Ledger(known)
        self.calls: list[CallDraft] = []
        #: What had to be assumed because it depends on float data, in words → where it was needed first.
        self.assumptions: dict[str, str] = {}
        self._operators = operator_table(registry, device)
        #: Sequence number of a backward node → the forward operation that it differentiates.
        self._forward_of: dict[int, int] = {}
        self._sequence = -1
        self._lines = SourceLines()
        self._routing = routing
        self._read_by_optimizer = 0
        #: Values of the forward operation that is being differentiated: its saved tensors are among them.
        self._near: Sequence[int] = ()
        #: The operation that raised last, and its exception: whoever catches that one may say where it was.
        self.failed: tuple[int, CallDraft] | None = None
        self._sole = sole_ownership()
        self._results = Results()
        #: What `torch.autocast` does, for backward inside one of its regions; set by whoever activates both.
        self.autocast: Autocast | None = None

    def saved(self, sequence: int, tensors: list[torch.Tensor]) -> None:
        """The backward function with this sequence number keeps these tensors."""
        index = self._forward_of.get(sequence)
        kept = [tensor for tensor in tensors if self.ledger.knows(tensor)]
        for tensor in kept:
            self.ledger.mark_temporary(tensor, "activation")
        if index is not None and kept:
            call = self.calls[index]
            near = call.values()
            call.saved = tuple(dict.fromkeys(self.ledger.value_of(tensor, near) for tensor in kept))

    # -- one call -------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a DTensor makes operations on the rank's own tensors of it, and those are recorded
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
        if operator.composite or operator.body is not None:
            with self:
                return func.decompose(*args, **kwargs) if operator.composite else operator.body(*args, **kwargs)
        if self.autocast is not None and self.autocast.is_open and _current_autograd_node() is not None:
            with self:
                args, kwargs = self.autocast.cast_for(operator.name.split(".")[1], args, kwargs)
        call = self._describe(operator, args, kwargs)
        if call.phase == "optimizer" and not call.module and on_device is not None and not operator.takes_lists:
            call.module = self.ledger.owner(on_device)
        shared = None
        if operator.inplace is not None and call.node:
            shared = operator.inplace.apply(OpCall(operator.name, args, kwargs, self.device, call.node), self._owned)
        try:
            result = self._run(operator, func, args, kwargs, inputs, call)
        except Exception as error:
            self.failed = (id(error), call)
            self._forget(call)
            raise
        self._account(operator, args, kwargs, result, call, shared)
        if operator.communicates:
            for tensor, kind in tensors_of(operator.name, args, kwargs, result):
                self.ledger.mark_temporary(tensor, kind)
        if operator.mutates:
            for tensor in inputs:
                if tensor.device.type == "meta":
                    self.ledger.resized(tensor.untyped_storage(), tensor)
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
        self.ledger.op = len(self.calls)
        self.calls.append(call)
        return call

    def _forget(self, call: CallDraft) -> None:
        """An operation that raised did not run (its caller may catch that and do otherwise), unless something was released meanwhile."""
        events = self.ledger.events
        if self.calls[-1] is call and not (events and events[-1].op == self.ledger.op):
            self.calls.pop()
            self.ledger.op = len(self.calls) - 1 if self.calls else None

    def _describe_backward(self, call: CallDraft, node: Any) -> None:
        call.phase = "backward"
        call.node = node.name().removeprefix("torch::autograd::")
        forward = self._forward_of.get(node._sequence_nr())
        if forward is not None:
            differentiated = self.calls[forward]
            call.module, call.line = differentiated.module, differentiated.line
            # Its saved tensors come back as new objects, over a storage that other views share.
            self._near = differentiated.values()
        elif (variable := getattr(node, "variable", None)) is not None:
            call.module, call.line = self.ledger.owner(variable), None

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return ValueRef(self.ledger.value_of(value, self._near))
        if isinstance(value, list | tuple):
            return type(value)([self._argument(item) for item in value])
        if isinstance(value, torch.UntypedStorage):
            return "storage"  # of `Tensor.set_`: to keep it would keep its memory
        if isinstance(value, torch.ScriptObject):
            return written(value)
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
            read = None
            if call.phase == "optimizer":
                read, self._read_by_optimizer = self._read_by_optimizer, self._read_by_optimizer + 1
            result = operator.data.apply(described, Values(func, self.known, self.assume, self._routing, read))
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
        key = self._results.signature(func, call.args, call.kwargs, self.ledger.values)
        result = NotImplemented if key is None else self._results.recall(key, args)
        if result is NotImplemented:
            result = func(*args, **kwargs)
            if key is not None:
                self._results.learn(key, args, result)
        return result

    def _any_known(self, inputs: list[torch.Tensor]) -> bool:
        return all(self.known.has(tensor) for tensor in inputs)

    def assume(self, text: str) -> None:
        """Note an assumption, with the place that needs it."""
        call = self.calls[-1]
        where = f"{call.module or 'the model'}, {call.name}" + (f" ({render(call.line)})" if call.line else "")
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
            owners, detached = self._owners(operator, args, call, len(outputs)), operator.detaches
            call.outputs = tuple(
                [self.ledger.output(t, owner, shared, detached) for t, owner in zip(outputs, owners, strict=True)]
            )
        else:
            self._perform(steps_of(scratch, len(outputs)), scratch, outputs, shared, call)
        if call.node == "AccumulateGrad" and not operator.name.endswith(".out"):  # DDP's copy into its bucket
            self._gradients(outputs)

    def _owners(self, operator: Operator, args: tuple[Any, ...], call: CallDraft, count: int) -> list[str]:
        """The module each output belongs to: the running one, or, of a foreach operation, that of the tensor it is made from."""
        if (
            self.phase == "optimizer"
            and operator.takes_lists
            and args
            and isinstance(args[0], list | tuple)
            and len(args[0]) == count
            and all(isinstance(item, torch.Tensor) for item in args[0])
        ):
            return [self.ledger.owner(tensor) for tensor in args[0]]
        return [call.module] * count

    def _perform(
        self, steps: Sequence[Step], scratch: Scratch, outputs: list[torch.Tensor], shared: Any, call: CallDraft
    ) -> None:
        """What a kernel takes and frees around its outputs, step by step."""
        for position in scratch.host:
            self.ledger.hold(outputs[position].untyped_storage())
        taken: list[int | None] = []
        values: dict[int, int] = {}
        for step in steps:
            if isinstance(step, Out):
                values[step.position] = self.ledger.output(outputs[step.position], call.module, shared)
            elif isinstance(step, Free):
                self.ledger.drop(taken[step.taken])
                taken[step.taken] = None
            elif isinstance(step, Kept):
                self.ledger.workspace(step.library, step.nbytes, call.phase in ("backward", "recompute"))
            else:
                taken.append(self.ledger.scratch(step, call.module, f"scratch of {call.name}") if step else None)
        call.outputs = tuple([values[position] for position in range(len(outputs))])
        for block in reversed(taken):
            self.ledger.drop(block)

    def _gradients(self, outputs: list[torch.Tensor]) -> None:
        """What AccumulateGrad keeps, by stealing or copying, is the parameter's gradient from now on."""
        parameter = getattr(_current_autograd_node(), "variable", None)
        for tensor in outputs:
            if parameter is not None and tensor.shape == parameter.shape:
                self.ledger.mark(tensor, "gradient", parameter)

    def _owned(self, tensor: torch.Tensor) -> bool:
        """Nobody but the autograd engine holds this tensor or its storage."""
        return ownership_of(tensor) == self._sole
