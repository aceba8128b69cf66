"""A folder (or a Hub cache snapshot) on this machine as a Repository."""

from __future__ import annotations

import os
from pathlib import Path

from graphmem.errors import CheckpointError, TargetError


class LocalFolder:
    """Files below ``root``, by path relative to it. Symbolic links are followed: a Hub snapshot is made of them."""

    workers = 1

    def __init__(self, root: Path, origin: str | None = None) -> None:
        self.root = root
        self.name = root.name
        self.origin = origin or "local folder"
        self.files = _list_files(root)

    def read(self, path: str, start: int, stop: int) -> bytes:
        return read_range(self.root / path, start, stop, path)


def read_range(file: Path, start: int, stop: int, name: str) -> bytes:
    """Bytes ``[start, stop)`` of ``file``, exactly; ``name`` is what messages call it.

    Raises:
        TargetError: the file cannot be opened.
        CheckpointError: it ends too early.
    """
    try:
        with open(file, "rb") as stream:
            stream.seek(start)
            data = stream.read(stop - start)
    except OSError as error:
        raise TargetError(f"{file}: {error.strerror or error}; check the path and its permissions") from error
    if len(data) < stop - start:
        raise CheckpointError(f"{name}: the file ends at byte {start + len(data):,} while {stop:,} are needed")
    return data


def _list_files(root: Path) -> dict[str, int]:
    files: dict[str, int] = {}
    for folder, subfolders, names in os.walk(root, followlinks=False):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file():
                files[path.relative_to(root).as_posix()] = path.stat().st_size
    return files
