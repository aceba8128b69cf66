"""A target → a Checkpoint: live module, local path, Hub id, or (when the Hub cannot be reached) cache and catalog."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graphmem.checkpoint import Checkpoint, ModelSpec
from graphmem.errors import CheckpointError, HubUnreachableError, MissingExtraError, TargetError
from graphmem.sources.catalog import catalog_ids, find, read_catalog
from graphmem.sources.local import LocalFolder
from graphmem.sources.pipeline import dense_modules, is_adapter, is_pipeline, read_adapter, read_pipeline
from graphmem.sources.repository import Progress, Repository
from graphmem.sources.weights import Findings, read_file, read_model

if TYPE_CHECKING:
    import torch

_HUB_ID = re.compile(r"^[\w][\w.-]*(/[\w.-]+)?$")
_HUB_LINK = re.compile(r"^https?://[^/]+/(?P<id>[\w.-]+/[\w.-]+)")
_HUB_FILE = re.compile(r"^(?P<id>[\w][\w.-]*/[\w.-]+)/(?P<path>.+)$")


@dataclass(frozen=True)
class Access:
    """How to reach the Hub."""

    revision: str | None = None
    token: str | None = None
    offline: bool = False
    progress: Progress | None = None


def load(target: str | Path | torch.nn.Module, access: Access = Access()) -> Checkpoint:
    """Read what ``target`` stores, without reading a weight.

    Args:
        target: ``owner/name`` on the Hub, ``owner/name/file.gguf`` for one of its files, a local folder or file, or a module.

    Raises:
        GraphmemError: in one line, what is wrong and what to do; the subclass says of which sort.
    """
    if not isinstance(target, str | Path):
        return _from_module(target)
    text = str(target)
    if not text:
        raise TargetError("the target is empty: give a Hub id (owner/name), a path, or a module")
    if link := _HUB_LINK.match(text):
        raise TargetError(f"{text} is a link; give the Hub id: {link['id']}")
    try:
        path = Path(text).expanduser()
        if path.exists():
            if access.revision is not None:
                raise TargetError(
                    f"{text} is here on disk, where there are no revisions; drop --revision, or give a Hub id"
                )
            return _from_path(path, text, access)
    except OSError as error:
        raise TargetError(f"{text}: {error.strerror or error}; check the path and its permissions") from error
    if isinstance(target, Path) or text.startswith((".", "/", "~")) or "\\" in text:
        raise TargetError(f"{text}: no such file or folder")
    if _HUB_ID.match(text):
        return _from_hub(text, access, None)
    if named := _HUB_FILE.match(text):
        return _from_hub(named["id"], access, named["path"])
    raise TargetError(f"{text!r} is neither a file or folder here nor a Hub id (owner/name)")


def _from_module(module: torch.nn.Module) -> Checkpoint:
    from graphmem.sources.module import spec_of_module

    if isinstance(module, type):
        raise TargetError(
            f"{module.__name__} is a class; make one (under torch.device('meta') it takes no memory) and give that"
        )
    if not callable(getattr(module, "named_parameters", None)):
        raise TargetError(f"{type(module).__name__} object: a target is a Hub id, a path, or a torch.nn.Module")
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return Checkpoint(name, f"live module {type(module).__qualname__}", (spec_of_module(module),))


def _from_path(path: Path, target: str, access: Access) -> Checkpoint:
    if path.is_file():
        folder = LocalFolder(path.parent, "local file")
        findings = Findings()
        spec = read_file(folder, path.name, findings)
        return Checkpoint(target, folder.origin, (spec,), tuple(findings.notes), tuple(findings.warnings))
    if not any(path.iterdir()):
        raise TargetError(f"{target}: the folder is empty")
    return _from_repository(LocalFolder(_snapshot_in(path)), target, access)


def _snapshot_in(path: Path) -> Path:
    """A whole Hub cache entry (models--owner--name) stands for the snapshot its main branch points to."""
    main, snapshots = path / "refs" / "main", path / "snapshots"
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    return path


def _from_repository(repository: Repository, target: str, access: Access) -> Checkpoint:
    findings = Findings()
    sections: tuple[ModelSpec, ...]
    if is_pipeline(repository):
        sections = read_pipeline(repository, findings, access.progress)
    elif is_adapter(repository):
        sections = read_adapter(repository, findings, lambda base: _load_base(base, target, access), access.progress)
    else:
        dense = [read_model(repository, findings, folder, folder) for folder in dense_modules(repository)]
        sections = (read_model(repository, findings, progress=access.progress), *dense)
    return Checkpoint(target, repository.origin, sections, tuple(findings.notes), tuple(findings.warnings))


def _load_base(base: str, adapter: str, access: Access) -> Checkpoint:
    """The model an adapter names, which must not be an adapter itself: those could name each other for ever."""
    path = Path(base).expanduser()
    if base == adapter or (path / "adapter_config.json").is_file():
        raise TargetError(f"{base} is an adapter itself; merge it into its base first")
    return load(base, Access(None, access.token, access.offline))


def _from_hub(repo_id: str, access: Access, file: str | None) -> Checkpoint:
    def read(repository: Repository) -> Checkpoint:
        if file is None:
            return _from_repository(repository, repo_id, access)
        if file not in repository.files:
            raise TargetError(f"{repo_id} has no file {file!r}; it has {_some(list(repository.files))}")
        findings = Findings()
        spec = read_file(repository, file, findings)
        return Checkpoint(
            f"{repo_id}/{file}", repository.origin, (spec,), tuple(findings.notes), tuple(findings.warnings)
        )

    from graphmem.sources.hub import is_offline

    if access.offline or is_offline():
        why = "--offline" if access.offline else "HF_HUB_OFFLINE is set"
        return _without_hub(repo_id, access, file, why, read)
    from graphmem.sources.hub import HubRepository

    try:
        return read(HubRepository(repo_id, access.revision, access.token))
    except HubUnreachableError as error:
        return _without_hub(repo_id, access, file, str(error), read)


def _without_hub(
    repo_id: str, access: Access, file: str | None, why: str, read: Callable[[Repository], Checkpoint]
) -> Checkpoint:
    """The Hub cache's copy if it is whole, else the catalog's entry; each says in the first line that the Hub was not asked."""
    from graphmem.sources.hub import cached_snapshot

    snapshot = cached_snapshot(repo_id, access.revision)
    known = find(repo_id) if access.revision is None and file is None else None
    # A cache often holds a config or a tokenizer only; then the catalog's shapes come before building the model here.
    if snapshot is not None and (
        known is None or any(path.endswith((".safetensors", ".gguf")) for path in snapshot.files)
    ):
        snapshot.origin += f" ({why})"
        try:
            return read(snapshot)
        except (CheckpointError, TargetError, MissingExtraError) as error:
            if known is None:
                raise TargetError(f"{repo_id}: {why}, and the Hub cache's copy cannot answer: {error}") from error
    if known is not None:
        return read_catalog(known, why)
    if find(repo_id) and (access.revision or file):
        raise TargetError(
            f"{repo_id}: {why}, and the built-in catalog has no revisions or files; drop them for its entry"
        )
    near = difflib.get_close_matches(repo_id, catalog_ids(), n=3, cutoff=0.8)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise TargetError(f"{repo_id}: {why}, and neither the Hub cache nor the built-in catalog has it{hint}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "no files"
