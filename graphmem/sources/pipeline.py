"""Repositories that hold several models: diffusers pipelines, sentence-transformers with dense heads, PEFT adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from graphmem.checkpoint import Checkpoint, ModelSpec
from graphmem.errors import CheckpointError, GraphmemError
from graphmem.sources.jsonfile import read_object
from graphmem.sources.repository import Progress, Repository
from graphmem.sources.weights import Findings, read_model


def is_pipeline(repository: Repository) -> bool:
    """A diffusers pipeline says so in model_index.json."""
    return "model_index.json" in repository.files


def read_pipeline(repository: Repository, findings: Findings, progress: Progress | None) -> tuple[ModelSpec, ...]:
    """The components of a diffusers pipeline that hold weights, in the order of model_index.json.

    Raises:
        CheckpointError: a component with a class has no folder.
    """
    index = read_object(repository, "model_index.json")
    sections: list[ModelSpec] = []
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2 or None in value:
            continue
        held = [path for path in repository.files if path.startswith(f"{name}/")]
        holds_weights = any(path.endswith((".safetensors", ".bin", ".gguf", ".index.json")) for path in held)
        if holds_weights or f"{name}/config.json" in held:
            sections.append(read_model(repository, findings, name, name, progress))
    if not sections:
        raise CheckpointError(
            "model_index.json: none of its components holds weights here; download the whole pipeline"
        )
    return tuple(sections)


def is_adapter(repository: Repository) -> bool:
    """PEFT writes adapter_config.json; a repository that also has full weights is a model."""
    return "adapter_config.json" in repository.files and not any(
        path in repository.files for path in ("model.safetensors", "model.safetensors.index.json")
    )


def read_adapter(
    repository: Repository, findings: Findings, load_base: Callable[[str], Checkpoint], progress: Progress | None
) -> tuple[ModelSpec, ...]:
    """The adapter's own tensors, and beside them the model it adapts, where that can be read."""
    config = read_object(repository, "adapter_config.json")
    adapter = replace(read_model(repository, findings, "", "adapter", progress), config={})
    base_id = config.get("base_model_name_or_path")
    kind = config.get("peft_type", "PEFT")
    if not isinstance(base_id, str) or not base_id:
        findings.warnings.append(
            "adapter_config.json: names no base model, so only the adapter's own tensors are counted"
        )
        return (adapter,)
    findings.notes.append(
        f"{kind} adapter for {base_id}" + (f", rank {config['r']}" if isinstance(config.get("r"), int) else "")
    )
    try:
        base = load_base(base_id)
    except GraphmemError as error:
        findings.warnings.append(f"base model not counted: {error}")
        return (adapter,)
    findings.notes.append(f"base read from {base.origin}")
    findings.notes.extend(base.notes)
    return (adapter, *(replace(spec, name=f"base {spec.name}".strip()) for spec in base.sections))


def dense_modules(repository: Repository) -> list[str]:
    """Folders of a sentence-transformers model's Dense modules, which hold weights of their own."""
    return sorted(path.split("/")[0] for path in repository.files if path.endswith("_Dense/model.safetensors"))
