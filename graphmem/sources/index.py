"""``model.safetensors.index.json``: which shard holds which tensor, and a total that cannot be trusted blindly."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Any

from graphmem.errors import CheckpointError
from graphmem.sources.jsonfile import read_object
from graphmem.sources.repository import Repository


@dataclass(frozen=True)
class Index:
    """Tensor name → shard path (relative to the repository), and the total the file claims, as it stands there."""

    path: str
    shards: dict[str, str]
    total_size: Any

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.shards.values())))

    def declared_bytes(self) -> int | None:
        """``metadata.total_size`` where it is a usable whole number of bytes above zero."""
        total = self.total_size
        if isinstance(total, bool) or not isinstance(total, int | float) or total <= 0 or total != int(total):
            return None
        return int(total)


def read_index(repository: Repository, path: str) -> Index:
    """Read and check an index.

    Raises:
        CheckpointError: ``weight_map`` is missing or not text to text, or a shard lies outside the index's folder.
    """
    content = read_object(repository, path)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path}: 'weight_map' (tensor name → shard file) is missing or empty; download the file again"
        )
    folder = posixpath.dirname(path)
    shards: dict[str, str] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard:
            raise CheckpointError(f"{path}: tensor {tensor!r}: the shard must be a file name, found {shard!r}")
        if "\\" in shard or shard.startswith("/") or ".." in shard.split("/") or ":" in shard:
            raise CheckpointError(
                f"{path}: tensor {tensor!r}: shard {shard!r} lies outside the checkpoint's folder: refused; "
                "the index is corrupt or hostile"
            )
        shards[tensor] = posixpath.normpath(posixpath.join(folder, shard))
    metadata = content.get("metadata")
    return Index(path, shards, metadata.get("total_size") if isinstance(metadata, dict) else None)


def total_size_warning(index: Index, stored: int) -> str | None:
    """A line about a total that is absent or wrong; the headers are what counts."""
    declared = index.declared_bytes()
    if declared == stored:
        is_float = isinstance(index.total_size, float)
        return (
            f"{index.path}: metadata.total_size is a float ({index.total_size}), though its value is right"
            if is_float
            else None
        )
    if declared is None:
        what = "absent" if index.total_size is None else f"unusable ({index.total_size!r})"
        return f"{index.path}: metadata.total_size is {what}; the headers say {stored:,} bytes and are what is counted"
    return (
        f"{index.path}: metadata.total_size says {declared:,} bytes, the headers {stored:,} "
        f"({stored - declared:+,}); the headers are what is counted"
    )
