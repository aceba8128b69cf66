"""Tables of what is stored: components, layers, dtypes, ties, tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from graphmem.inspection.model import BYTES, OF_BYTES, OF_PARAMETERS, PARAMETERS, Model
from graphmem.parameters.layers import layer_of
from graphmem.parameters.roles import COMPONENTS
from graphmem.parameters.stored import StoredTensor
from graphmem.report import Column, Row, Table, sum_row
from graphmem.units import GIB

#: Modules outside the layers are listed one by one up to this many, by their first name beyond.
_MOST_MODULES = 12


def parts_table(models: Sequence[Model]) -> Table:
    """The parts of a pipeline, or an adapter and its base."""
    columns = (
        Column("part", "Part"),
        PARAMETERS,
        OF_PARAMETERS,
        BYTES,
        Column("bytes_share", "Of bytes", "share", detail=True),
    )
    parameters = sum(model.parameters for model in models) or 1
    stored = sum(model.spec.nbytes for model in models) or 1
    rows = tuple(
        (m.spec.name or "model", m.parameters, m.parameters / parameters, m.spec.nbytes, m.spec.nbytes / stored)
        for m in models
    )
    return Table("parts", "Parts", columns, rows, models[0].spec.basis, sum_row(columns, rows))


def components_table(model: Model) -> Table:
    """Parameters and bytes by role."""
    columns = (
        Column("component", "Component"),
        PARAMETERS,
        OF_PARAMETERS,
        BYTES,
        _as_fp32(model, "fp32_bytes", "As fp32"),
    )
    total = model.parameters or 1
    rows: list[Row] = []
    for component in COMPONENTS:
        of = [t for t in model.tensors if model.roles[t.spec.name] == component]
        if of:
            count = sum(t.parameters for t in of)
            rows.append((component, count, count / total, sum(t.spec.nbytes for t in of), 4 * count))
    return Table("components", "Components", columns, tuple(rows), model.spec.basis, sum_row(columns, rows))


def _as_fp32(model: Model, key: str, title: str) -> Column:
    """In MiB, as articles print it, while that reads well."""
    return Column(key, title, "bytes", in_mib=4 * model.parameters < 64 * GIB, detail=True)


def layers_table(model: Model) -> Table:
    """Embeddings, identical layers folded, what else lies outside the layers, heads."""
    columns = (
        Column("layers", "Layers"),
        Column("each", "Each", "count"),
        PARAMETERS,
        OF_PARAMETERS,
        BYTES,
        _as_fp32(model, "fp32_bytes_each", "Each as fp32"),
    )
    total = model.parameters or 1
    stacks: list[Row] = [
        (g.title, g.parameters, g.total_parameters, g.total_parameters / total, g.total_nbytes, 4 * g.parameters)
        for g in model.groups
    ]
    before: list[Row] = []
    between: list[Row] = []
    after: list[Row] = []
    for name, tensors in _by_module(model).items():
        count = sum(t.parameters for t in tensors)
        role = model.roles[tensors[0].spec.name]
        row: Row = (name, count, count, count / total, sum(t.spec.nbytes for t in tensors), 4 * count)
        (before if role == "embedding" else after if role == "head" else between).append(row)
    rows = (*before, *stacks, *between, *after)
    sums = list(sum_row(columns, rows))
    sums[1] = sums[5] = None  # one layer's size says nothing summed over different layers
    return Table("layers", "Layers and what lies outside them", columns, rows, model.spec.basis, tuple(sums))


def _by_module(model: Model) -> dict[str, list[StoredTensor]]:
    """Tensors outside the stacks by owning module; a network with many such modules by their first name."""
    modules = _group(model.outside, _outside_name)
    if len(modules) > _MOST_MODULES:
        modules = _group(model.outside, lambda tensor: tensor.spec.name.split(".")[0])
    stacks = {group.stack for group in model.groups}
    return {
        f"{name} (rest)" if any(stack.startswith(f"{name}.") for stack in stacks) else name: tensors
        for name, tensors in modules.items()
    }


def _outside_name(tensor: StoredTensor) -> str:
    if place := layer_of(tensor.spec.name):  # the only layer of its stack, such as an extra prediction layer
        return f"{place[0]}.{place[1]}"
    module = tensor.spec.module.partition(".weight")[0] if tensor.kind == "scale" else tensor.spec.module
    return module or tensor.spec.name


def _group(tensors: Iterable[StoredTensor], name_of: Callable[[StoredTensor], str]) -> dict[str, list[StoredTensor]]:
    groups: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        groups.setdefault(name_of(tensor), []).append(tensor)
    return groups


def dtypes_table(model: Model) -> Table:
    """What each dtype holds, as stored."""
    columns = (
        Column("dtype", "Stored as"),
        Column("holds", "Holds"),
        Column("tensors", "Tensors", "count"),
        PARAMETERS,
        BYTES,
        OF_BYTES,
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
