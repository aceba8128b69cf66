"""One face for a local folder and a Hub repository: a listing of files, and reads of byte ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from graphmem.errors import CheckpointError

#: A config or an index is text that people wrote or a tool listed; nothing genuine comes near this.
MAX_TEXT_BYTES = 64_000_000

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Told (done, total) as concurrent reads finish.
Progress = Callable[[int, int], None]


class Repository(Protocol):
    """Files by path with their sizes in bytes, read by range so that weights are never touched."""

    @property
    def name(self) -> str:
        """What people call it: the folder's name or the Hub id."""
        ...

    @property
    def origin(self) -> str:
        """Where it is, in one line for a report."""
        ...

    @property
    def files(self) -> Mapping[str, int]:
        """Every file, by path with forward slashes, and its size in bytes."""
        ...

    @property
    def workers(self) -> int:
        """Reads worth having in flight at once."""
        ...

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)`` of the file, exactly.

        Raises:
            CheckpointError: the file ends before ``stop``.
            HubError: the server would not send them.
        """
        ...


def read_text(repository: Repository, path: str) -> bytes:
    """The whole of a small text file.

    Raises:
        CheckpointError: it is larger than any genuine config or index.
    """
    size = repository.files[path]
    if size > MAX_TEXT_BYTES:
        raise CheckpointError(f"{path}: {size:,} bytes is too large for a JSON file; check what the file really is")
    return repository.read(path, 0, size)


def map_concurrently(
    work: Callable[[_T], _R], items: Sequence[_T], workers: int, progress: Progress | None = None
) -> list[_R]:
    """``[work(item) for item in items]`` with ``workers`` threads, in order; the first failure stops the rest."""
    if workers <= 1 or len(items) <= 1:
        return [work(item) for item in items]
    done = 0
    with ThreadPoolExecutor(max_workers=min(workers, len(items))) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            results: list[_R] = []
            for future in futures:
                results.append(future.result())
                done += 1
                if progress:
                    progress(done, len(items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results
