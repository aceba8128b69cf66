"""The module tree to a chosen depth, identical siblings folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphmem.checkpoint import Basis
from graphmem.parameters.layers import spell_ranges
from graphmem.parameters.stored import StoredTensor
from graphmem.report import Column, Row, Table


@dataclass
class _Node:
    children: dict[str, _Node] = field(default_factory=dict)
    parameters: int = 0
    nbytes: int = 0

    def signature(self) -> object:
        return (self.parameters, self.nbytes, tuple((name, child.signature()) for name, child in self.children.items()))


def module_tree(tensors: Sequence[StoredTensor], basis: Basis, depth: int) -> Table:
    """Modules down to ``depth`` levels below the root, with everything they contain."""
    root = _Node()
    for tensor in tensors:
        node = root
        _add(node, tensor)
        for part in tensor.spec.name.split(".")[:-1]:
            node = node.children.setdefault(part, _Node())
            _add(node, tensor)
    rows: list[Row] = []
    own = [tensor for tensor in tensors if "." not in tensor.spec.name]
    if own:
        rows.append(("(root)", sum(t.parameters for t in own), sum(t.spec.nbytes for t in own)))
    _walk(root, "", 1, depth, rows)
    columns = (
        Column("module", "Module"),
        Column("parameters", "Parameters", "count"),
        Column("bytes", "Bytes", "bytes"),
    )
    return Table(
        "tree", f"Modules to depth {depth}", columns, tuple(rows), basis, ("Total", root.parameters, root.nbytes)
    )


def _add(node: _Node, tensor: StoredTensor) -> None:
    node.parameters += tensor.parameters
    node.nbytes += tensor.spec.nbytes


def _walk(node: _Node, indent: str, times: int, depth: int, rows: list[Row]) -> None:
    """Rows of the modules in ``node``; those below a folded ``×32`` count all thirty-two, so that children add up."""
    if depth == 0:
        return
    folded: dict[object, list[str]] = {}
    for name, child in node.children.items():
        key = child.signature() if name.isdigit() else name
        folded.setdefault(key, []).append(name)
    for names in folded.values():
        child, count = node.children[names[0]], times * len(names)
        title = names[0] if len(names) == 1 else f"{spell_ranges(sorted(map(int, names)))} ×{len(names)}"
        rows.append((indent + title, child.parameters * count, child.nbytes * count))
        _walk(child, indent + "  ", count, depth - 1, rows)
