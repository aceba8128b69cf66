"""A pickle of plain containers, and nothing else: what names a class or a function is refused before anything of it runs."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

from graphmem.errors import CheckpointError, TargetError


class _Code(Exception):
    """The pickle asks for this name."""


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise _Code(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Code(f"the persistent object {pid!r}")


def load_plain(path: Path) -> Any:
    """Dicts, lists, tuples, strings, numbers and None of a pickle file, also a gzipped one.

    Raises:
        TargetError: there is no such file.
        CheckpointError: it holds code, or is cut off or no pickle at all.
    """
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if zipped else raw as file:
                return _Plain(file).load()
    except FileNotFoundError as error:
        raise TargetError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except _Code as error:
        raise CheckpointError(
            f"{path}: holds {error}, which is code; a memory snapshot is plain dicts and lists, so this file was not opened"
        ) from error
    except EOFError as error:
        raise CheckpointError(f"{path}: ends in the middle of the pickle; copy or dump it again") from error
    except (pickle.UnpicklingError, ValueError, IndexError, KeyError, AttributeError, TypeError, MemoryError, OverflowError, UnicodeDecodeError) as error:  # fmt: skip
        cut = "truncated" in str(error)
        why = "ends in the middle of the pickle; copy or dump it again" if cut else "is no pickle of a memory snapshot"
        raise CheckpointError(f"{path}: {why}") from error
