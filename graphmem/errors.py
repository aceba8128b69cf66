"""Errors are for the user: what went wrong, where, and what to type next. One line each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GraphmemError(Exception):
    """Base of every error graphmem raises on purpose. The CLI prints it in one line and exits with ``exit_code``."""

    exit_code = 2


class TargetError(GraphmemError):
    """The target names nothing that can be read: no such file, repository, revision or catalog entry."""


class CheckpointError(GraphmemError):
    """A checkpoint file breaks its own format; the message names the file and the tensor or key."""


class HubError(GraphmemError):
    """The Hub answered with an error that trying another source cannot hide (gated, server error, cut connection)."""


class HubUnreachableError(HubError):
    """The Hub could not be reached at all, so a cached or built-in copy may answer instead."""


class UnsupportedError(GraphmemError):
    """Something graphmem does not know, by name. It is never guessed and never counted as zero."""


class MissingExtraError(GraphmemError):
    """A command needs an optional dependency; the message holds the ``pip install`` line that adds it."""

    def __init__(self, why: str, extra: str) -> None:
        super().__init__(f"{why}; run: pip install 'graphmem[{extra}]'")
        self.extra = extra


def nearest(name: str, known: Iterable[str]) -> str:
    """What to type instead of a name that is not known: the likeliest ones, then all: ``did you mean 'bf16'? There are bf16, fp16``."""
    names = list(known)
    by_letters = {other.lower(): other for other in names}
    close = [by_letters[found] for found in difflib.get_close_matches(name.lower(), by_letters, 3, 0.5)]
    meant = f"did you mean {' or '.join(repr(other) for other in close)}? " if close else ""
    return f"{meant}There are {', '.join(names)}"
