"""The ledger: which storages are alive, the blocks they lie in, and every allocation and release in order.

A weak reference is kept to each storage. When Python or the autograd engine drops the last strong one, the ledger hears of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graphmem.timeline.events import Event, Kind, Value
from graphmem.tracing.drafts import BlockDraft, Held
from graphmem.tracing.known import KnownValues


class Ledger:
    """Blocks, values and events of a step. ``op`` is the operation that is running: what happens is its doing."""

    def __init__(self, known: KnownValues) -> None:
        self.blocks: list[BlockDraft] = []
        self.events: list[Event] = []
        self.values: list[Value] = []
        #: Values of the start state (parameters, buffers, inputs), by name.
        self.placeholders: dict[str, int] = {}
        self.op: int | None = None
        #: The CUDA stream that is current.
        self.stream = 0
        #: What is made now lies in host memory: it is followed, in no block.
        self.on_host = False
        #: Where ``torch.cuda.empty_cache()`` was called: before these events.
        self.emptied_at: list[int] = []
        self._known = known
        self._held: dict[int, Held] = {}
        self._workspaces: dict[tuple[str, bool], int] = {}
        self._closed = False

    def start_with(self, tensor: torch.Tensor, name: str, kind: Kind, module: str) -> None:
        """A tensor that is on the device before the step begins. A storage is counted once, under its first name."""
        held = self._held.get(tensor.untyped_storage()._cdata) or self._born(tensor, kind, module, name)
        self.placeholders[name] = self._new_value(held, tensor)

    def close(self) -> None:
        """The step is over: what Python drops from here on is not part of it."""
        self._closed = True

    def stream_entered(self, stream: int) -> None:
        """What is allocated from now on comes from this stream's pool."""
        self.stream = stream

    def cache_emptied(self) -> None:
        """The code called ``torch.cuda.empty_cache()``."""
        self.emptied_at.append(len(self.events))

    # -- storages and blocks --------------------------------------------------------------------------------------

    def output(self, tensor: torch.Tensor, module: str, shared: torch.Tensor | None = None, view: bool = False) -> int:
        """A result of the running operation, as a value. A new storage is a new block, or that of ``shared``, which eager reuses."""
        if tensor.device.type != "meta":
            return self._host_value(tensor)
        storage = tensor.untyped_storage()
        held = self._held.get(storage._cdata)
        if held is None and shared is not None:
            held = self.hold(storage)
            held.block = self._held[shared.untyped_storage()._cdata].block
            if held.block is not None:
                self.blocks[held.block].holders += 1
        return self._new_value(held or self._born(tensor, "temporary", module), tensor, same=view)

    def hold(self, storage: torch.UntypedStorage) -> Held:
        """Follow a storage that lies in no block (yet)."""
        held = Held(storage, self._released)
        held.key, held.nbytes, held.values, held.block = storage._cdata, storage.nbytes(), {}, None
        self._held[held.key] = held
        return held

    def scratch(self, nbytes: int, module: str, name: str) -> int | None:
        """A block that is no tensor's; none for work of the host."""
        return None if self.on_host else self._allocate(nbytes, "temporary", module, None, name)

    def workspace(self, library: str, nbytes: int, in_backward: bool) -> None:
        """A library's handle is per thread, and backward runs on a thread of its own."""
        key = (library, in_backward)
        if key not in self._workspaces and not self.on_host:
            self._workspaces[key] = self._allocate(nbytes, "workspace", "", None, library)

    def drop(self, block: int | None) -> None:
        """One of those that share a block is gone."""
        if block is None:
            return
        draft = self.blocks[block]
        draft.holders -= 1
        if draft.holders == 0:
            self.events.append(Event(False, block, self.op))

    def resized(self, storage: torch.UntypedStorage, tensor: torch.Tensor | None = None) -> None:
        """A storage may have another size now: CUDA then allocates anew, copies, and frees the old memory."""
        held = self._held.get(storage._cdata)
        if held is None or held.nbytes == storage.nbytes():
            return
        before, held.nbytes, held.block = held.block, storage.nbytes(), None
        if held.nbytes:
            was = self.blocks[before] if before is not None else None
            kind, module, name = (was.kind, was.module, was.name) if was is not None else ("temporary", "", "")
            held.block = self._allocate(held.nbytes, kind, module, tensor, name)
        self.drop(before)
        self._known.forget(held.key)

    def _born(self, tensor: torch.Tensor, kind: Kind, module: str, name: str = "") -> Held:
        held = self.hold(tensor.untyped_storage())
        if held.nbytes and not self.on_host:
            held.block = self._allocate(held.nbytes, kind, module, tensor, name)
        return held

    def _allocate(self, nbytes: int, kind: Kind, module: str, tensor: torch.Tensor | None, name: str = "") -> int:
        shape = tuple(tensor.shape) if tensor is not None else ()
        dtype = _dtype_name(tensor.dtype) if tensor is not None else "uint8"
        self.blocks.append(BlockDraft(nbytes, kind, self.op, module, shape, dtype, name, self.stream))
        self.events.append(Event(True, len(self.blocks) - 1, self.op))
        return len(self.blocks) - 1

    def _released(self, held: Held) -> None:
        if self._closed:
            return
        if self._held.get(held.key) is held:
            del self._held[held.key]
            self._known.forget(held.key)
        self.drop(held.block)

    # -- what a block turns out to be -----------------------------------------------------------------------------

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's storage is on the device and followed."""
        return tensor.device.type == "meta" and tensor.untyped_storage()._cdata in self._held

    def owner(self, tensor: torch.Tensor) -> str:
        """The module that the tensor's block belongs to."""
        draft = self._draft_of(tensor)
        return draft.module if draft is not None else ""

    def mark(self, tensor: torch.Tensor, kind: Kind, of: torch.Tensor | None = None) -> None:
        """A tensor turned out to be of this kind; its block takes the name and module of what it belongs to."""
        draft = self._draft_of(tensor)
        if draft is None:
            return
        draft.kind = kind
        if of is not None and (owner := self._draft_of(of)) is not None:
            draft.module, draft.name = owner.module, owner.name

    def mark_temporary(self, tensor: torch.Tensor, kind: Kind) -> None:
        """`mark`, unless its block is known to be something else already."""
        draft = self._draft_of(tensor)
        if draft is not None and draft.kind == "temporary":
            draft.kind = kind

    def mark_alive(self, kind: Kind) -> None:
        """`mark_temporary` for everything that is alive: what outlives forward is there for backward, whoever holds it (checkpointing
        keeps its inputs in a closure, and a function of one's own may keep anything)."""
        for held in self._held.values():
            if held.block is not None and self.blocks[held.block].kind == "temporary":
                self.blocks[held.block].kind = kind

    def _draft_of(self, tensor: torch.Tensor) -> BlockDraft | None:
        held = self._held.get(tensor.untyped_storage()._cdata) if tensor.device.type == "meta" else None
        return self.blocks[held.block] if held is not None and held.block is not None else None

    # -- values ---------------------------------------------------------------------------------------------------

    def value_of(self, tensor: torch.Tensor, near: Sequence[int] = ()) -> int:
        """The value a tensor is: one of ``near`` if it can be, else the latest of its geometry."""
        if tensor.device.type != "meta":
            return self._host_value(tensor)
        # What was made behind the recorder's back is on the device from here on.
        held = self._held.get(tensor.untyped_storage()._cdata) or self._born(tensor, "temporary", "")
        for index in near:
            value = self.values[index]
            if value.block == held.block and value.shape == tensor.size() and value.stride == tensor.stride():
                return index
        found = held.values.get((tensor.size(), tensor.stride(), tensor.storage_offset()))
        return self._new_value(held, tensor) if found is None else found

    def _new_value(self, held: Held, tensor: torch.Tensor, same: bool = False) -> int:
        shape, stride = tensor.size(), tensor.stride()
        geometry, index = (shape, stride, tensor.storage_offset()), len(self.values)
        if not same or geometry not in held.values:
            held.values[geometry] = index
        self.values.append(Value(tuple(shape), stride, _dtype_name(tensor.dtype), held.block))
        return index

    def _host_value(self, tensor: torch.Tensor) -> int:
        self.values.append(Value(tuple(tensor.shape), tensor.stride(), _dtype_name(tensor.dtype), None))
        return len(self.values) - 1


_DTYPES: dict[torch.dtype, str] = {}


def _dtype_name(dtype: torch.dtype) -> str:
    name = _DTYPES.get(dtype)
    if name is None:
        name = _DTYPES[dtype] = str(dtype).removeprefix("torch.")
    return name
