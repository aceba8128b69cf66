"""JSON files of a checkpoint (config, index, adapter config) read with errors that name the file and the key."""

from __future__ import annotations

import json
from typing import Any

from graphmem.errors import CheckpointError
from graphmem.sources.repository import Repository, read_text


def read_object(repository: Repository, path: str) -> dict[str, Any]:
    """The JSON object in ``path``.

    ``Infinity`` and ``NaN`` are accepted, as Python's and therefore transformers' reader accepts them: three published
    Nemotron-H configs carry them.

    Raises:
        CheckpointError: not UTF-8, not JSON, or not an object.
    """
    data = read_text(repository, path)
    try:
        value = json.loads(data.decode("utf-8-sig"), object_hook=_float)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text at byte {error.start}; download the file again") from error
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise CheckpointError(f"{path}: not valid JSON ({where}); download the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}; check the file")
    return value


def _float(value: dict[str, Any]) -> Any:
    """transformers 5 writes an infinity as ``{"__float__": "Infinity"}``."""
    if len(value) == 1 and isinstance(text := value.get("__float__"), str):
        return float(text)
    return value
