"""``functools.lru_cache`` in a model's code: what a trace puts there (positions on a device that is not) must not outlive it."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator
from typing import Any


def _caches(classes: Iterable[type]) -> Iterator[Any]:
    """The caches among the methods of these classes, and among the functions of the files that define them."""
    holders: dict[int, Any] = {id(vars(cls)): vars(cls) for one in classes for cls in one.__mro__}
    for one in classes:
        for cls in one.__mro__:
            file = sys.modules.get(cls.__module__)
            if file is not None and cls.__module__.partition(".")[0] not in ("torch", "builtins"):
                holders[id(vars(file))] = vars(file)
    for holder in holders.values():
        yield from (value for value in holder.values() if isinstance(value, functools._lru_cache_wrapper))


@contextlib.contextmanager
def emptied_caches(classes: Iterable[type]) -> Iterator[None]:
    """Caches that grew while this lasted are empty afterwards."""
    sizes = [(cache, cache.cache_info().misses) for cache in _caches(classes)]
    try:
        yield
    finally:
        for cache, misses in sizes:
            if cache.cache_info().misses != misses:
                cache.cache_clear()
