"""Where device rules are kept: one small function a rule, found by what it is about and the device it holds on.

A step runs on the meta device, whose kernels only compute shapes. A rule restores one thing that a real device does
otherwise. Its docstring is its reason, ``source`` says where that can be looked up; a second rule for the same thing is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

from graphmem.errors import GraphmemError

if TYPE_CHECKING:
    from graphmem.tracing.device import Device

#: ``call``: a Python call of torch's that takes another way on the device. ``output``: what an operation returns, where meta
#: has no kernel or another one. ``scratch``: memory a kernel or its library takes beside its outputs. ``inplace``: an operation that
#: autograd runs out of place only because the tensors are on meta. ``data``: an operation whose result depends on values.
RuleKind = Literal["call", "output", "scratch", "inplace", "data"]
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Rule:
    """One difference between the meta device and a real one."""

    kind: RuleKind
    #: A Python callable of torch's for ``call``; else an operator's name, ``aten.mm.default`` or ``mylib.op.default``.
    target: Any
    #: None: on every device.
    device: str | None
    apply: Callable[..., Any]
    source: str

    @property
    def reason(self) -> str:
        return (self.apply.__doc__ or "").strip()


class Out(NamedTuple):
    """A step of `Scratch.program`: the kernel allocates the output at this position."""

    position: int = 0


class Free(NamedTuple):
    """A step of `Scratch.program`: the kernel frees what it took as its ``taken``-th number of bytes, from 0."""

    taken: int


class Kept(NamedTuple):
    """A library takes memory at its first use by a thread, and keeps it."""

    library: str
    nbytes: int


#: Bytes taken, an output allocated, something freed, a library's workspace.
Step = int | Out | Free | Kept


@dataclass(frozen=True, slots=True)
class Scratch:
    """Bytes a kernel takes beside its outputs. ``before`` and ``after`` are relative to its outputs, and freed when it returns."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    #: (library, bytes) allocated at first use by a thread and kept: cuBLAS's workspace.
    workspace: tuple[tuple[str, int], ...] = ()
    #: The order in which the kernel allocates its outputs, where it is not theirs: ``(1, 0)``.
    order: tuple[int, ...] = ()
    #: In place of ``before``, ``after`` and ``order`` where those cannot say it: bytes taken, outputs and releases one by one. What it
    #: leaves out follows: outputs by position, then what was taken is freed, last first.
    program: tuple[int | Out | Free, ...] = ()
    #: Positions of outputs that are in host memory.
    host: tuple[int, ...] = ()


def steps_of(scratch: Scratch, outputs: int) -> list[Step]:
    """What a kernel does, step by step; a library is asked for its workspace when the outputs are there."""
    if scratch.program:
        told = {step.position for step in scratch.program if isinstance(step, Out)}
        return [*scratch.program, *(Out(position) for position in range(outputs) if position not in told)]
    order = [Out(position) for position in scratch.order or range(outputs)]
    return [*scratch.before, *order, *(Kept(*one) for one in scratch.workspace), *scratch.after]


@dataclass(frozen=True)
class OpCall:
    """What a rule is told about one call of an operator."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    device: Device
    #: The backward function that runs it, or empty.
    node: str = ""
    #: What it returned; None before it ran.
    result: Any = None

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


@dataclass
class Registry:
    """The rules by kind, target and device."""

    _rules: dict[tuple[RuleKind, Any, str | None], Rule] = field(default_factory=dict)

    def add(self, rule: Rule) -> None:
        """Keep a rule.

        Raises:
            GraphmemError: there is one for the same target and device, or it does not say why it exists.
        """
        key = (rule.kind, rule.target, rule.device)
        if key in self._rules:
            where = f" on {rule.device}" if rule.device else ""
            raise GraphmemError(
                f"there is a {rule.kind} rule for {rule.target}{where} already: {self._rules[key].reason}"
            )
        if not rule.reason:
            raise GraphmemError(f"the {rule.kind} rule for {rule.target} has no docstring; say there why it is needed")
        self._rules[key] = rule

    def remove(self, kind: RuleKind, target: Any, device: str | None = None) -> None:
        """Forget a rule, for whoever registered one for a while."""
        self._rules.pop((kind, target, device), None)

    def find(self, kind: RuleKind, target: Any, device: str) -> Rule | None:
        """The rule for this device, else the one for every device."""
        return self._rules.get((kind, target, device)) or self._rules.get((kind, target, None))

    def of(self, kind: RuleKind, device: str) -> dict[Any, Rule]:
        """All rules of a kind that hold on a device, by target."""
        found = {rule.target: rule for rule in self if rule.kind == kind and rule.device is None}
        return found | {rule.target: rule for rule in self if rule.kind == kind and rule.device == device}

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(tuple(self._rules.values()))


REGISTRY = Registry()


def rule(
    kind: RuleKind, *targets: Any, device: str | None = None, source: str = "", registry: Registry | None = None
) -> Callable[[_Function], _Function]:
    """Register a function as the rule for each target: an operator's name (``aten.mm.default``), or for ``call`` a function of torch's.

    The function's docstring is its reason and required; ``device`` is ``"cuda"``, ``"cpu"`` or None for both.

    ``call``: ``(call: PythonCall) -> result or NotImplemented``. ``output``: ``(call: OpCall) -> tensors on meta``.
    ``scratch``: ``(call: OpCall) -> Scratch or None``. ``inplace``: ``(call: OpCall, owned) -> argument or None``.
    ``data``: ``(call: OpCall, values) -> result``.
    """

    if kind not in get_args(RuleKind) or device not in (None, "cuda", "cpu"):
        raise GraphmemError(
            f"rule {kind!r} on {device!r}: kinds are {', '.join(get_args(RuleKind))}; devices cuda, cpu or None"
        )

    def register(function: _Function) -> _Function:
        for target in targets:
            (REGISTRY if registry is None else registry).add(Rule(kind, target, device, function, source))
        return function

    return register
