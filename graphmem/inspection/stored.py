"""Tables of what is stored: components, layers, dtypes, ties, tensors."""

from __future__ import annotations

from collections.abc import Iterable

from graphmem.inspection.model import BYTES, PARAMETERS, SHARE, Model
from graphmem.parameters.roles import COMPONENTS
from graphmem.parameters.stored import StoredTensor
from graphmem.report import Column, Row, Table, sum_row


def components_table(model: Model) -> Table:
    """Parameters and bytes by role."""
    columns = (
        Column("component", "Component"),
        PARAMETERS,
        SHARE,
        BYTES,
        Column("fp32_bytes", "As fp32", "bytes", in_mib=True),
    )
    total = model.parameters or 1
    rows: list[Row] = []
    for component in COMPONENTS:
        of = [t for t in model.tensors if model.roles[t.spec.name] == component]
        if of:
            count = sum(t.parameters for t in of)
            rows.append((component, count, count / total, sum(t.spec.nbytes for t in of), 4 * count))
    return Table("components", "Components", columns, tuple(rows), model.spec.basis, sum_row(columns, rows))


def layers_table(model: Model) -> Table:
    """Identical layers folded, then what lies outside them."""
    columns = (
        Column("layers", "Layers"),
        Column("each", "Each", "count"),
        PARAMETERS,
        SHARE,
        BYTES,
        Column("fp32_bytes_each", "Each as fp32", "bytes", in_mib=True),
    )
    total = model.parameters or 1
    rows: list[Row] = [
        (g.title, g.parameters, g.total_parameters, g.total_parameters / total, g.total_nbytes, 4 * g.parameters)
        for g in model.groups
    ]
    for module, tensors in _by_module(model.outside).items():
        count = sum(t.parameters for t in tensors)
        rows.append((module, count, count, count / total, sum(t.spec.nbytes for t in tensors), 4 * count))
    sums = list(sum_row(columns, rows))
    sums[1] = sums[5] = None  # one layer's size says nothing summed over different layers
    return Table("layers", "Layers and what lies outside them", columns, tuple(rows), model.spec.basis, tuple(sums))


def _by_module(tensors: Iterable[StoredTensor]) -> dict[str, list[StoredTensor]]:
    modules: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        name = tensor.spec.module if tensor.kind != "scale" else tensor.spec.name
        modules.setdefault(name or tensor.spec.name, []).append(tensor)
    if len(modules) > 12:  # a network without stacks: its top-level modules say more than every leaf
        shorter: dict[str, list[StoredTensor]] = {}
        for name, members in modules.items():
            shorter.setdefault(name.split(".")[0], []).extend(members)
        return shorter
    return modules


def dtypes_table(model: Model) -> Table:
    """What each dtype holds, as stored."""
    columns = (
        Column("dtype", "Stored as"),
        Column("holds", "Holds"),
        Column("tensors", "Tensors", "count"),
        PARAMETERS,
        BYTES,
        SHARE,
    )
    groups: dict[tuple[str, str], list[StoredTensor]] = {}
    for tensor in model.tensors:
        groups.setdefault((tensor.spec.dtype.name, tensor.kind), []).append(tensor)
    total = model.spec.nbytes or 1
    rows: list[Row] = []
    for (dtype, kind), of in groups.items():
        nbytes, count = sum(t.spec.nbytes for t in of), sum(t.parameters for t in of)
        packed = kind == "parameter" and count > sum(t.spec.elements for t in of)
        rows.append((dtype, "packed parameters" if packed else f"{kind}s", len(of), count, nbytes, nbytes / total))
    rows.sort(key=lambda row: -float(row[4] or 0))
    return Table("dtypes", "Dtypes as stored", columns, tuple(rows), model.spec.basis, sum_row(columns, rows))


def ties_table(model: Model) -> Table:
    """Weights that are one storage."""
    columns = (Column("owner", "Tied weight"), Column("names", "Also used as"), PARAMETERS, Column("stored", "Stored"))
    rows = tuple(
        (t.owner, ", ".join(t.names), t.parameters, "again, as a copy" if t.stored_again else "once")
        for t in model.ties
    )
    return Table("ties", "Tied weights, counted once", columns, rows, model.spec.basis)


def tensors_table(model: Model) -> Table:
    """Every tensor."""
    columns = (
        Column("tensor", "Tensor"),
        Column("component", "Component"),
        Column("kind", "Kind"),
        Column("dtype", "Dtype"),
        Column("shape", "Shape"),
        PARAMETERS,
        BYTES,
    )
    rows = tuple(
        (
            t.spec.name,
            model.roles[t.spec.name],
            t.kind,
            t.spec.dtype.name,
            "×".join(map(str, t.spec.shape)) or "scalar",
            t.parameters,
            t.spec.nbytes,
        )
        for t in model.tensors
    )
    return Table("tensors", "Tensors", columns, rows, model.spec.basis, sum_row(columns, rows))
