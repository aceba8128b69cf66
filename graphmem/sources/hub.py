"""A model repository on the Hugging Face Hub as a Repository: one listing, then ranged reads, never a weight.

Everything goes through huggingface_hub's own session, URL builder and headers, so HF_TOKEN, HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE, proxies and time-outs behave as its users expect.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphmem.errors import CheckpointError, HubError, HubUnreachableError, TargetError
from graphmem.sources.local import LocalFolder, read_range

#: A cut connection or a busy server is tried again this often, waiting 0.5 s, then 1 s.
_RETRIES = 2
_FIRST_WAIT_S = 0.5
_BUSY = (429, 500, 502, 503, 504)
#: Enough to hide the latency of a hundred shards without being a burden to the Hub.
_WORKERS = 48


class HubRepository:
    """One revision of a model repository. Files already in the Hub cache at that commit are read from disk."""

    workers = _WORKERS

    def __init__(self, repo_id: str, revision: str | None = None, token: str | None = None) -> None:
        """List the repository.

        Raises:
            TargetError: no such repository or revision, or an id the Hub would not accept.
            HubError: gated, private, or the server failed.
            HubUnreachableError: no connection.
        """
        from huggingface_hub import constants

        _knock(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT)
        from huggingface_hub import HfApi
        from huggingface_hub.utils import build_hf_headers

        self.name = repo_id
        self._headers = build_hf_headers(token=token)
        self._timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with _hub_errors(repo_id, revision):
            info = HfApi(token=token).model_info(
                repo_id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        self.commit = info.sha or revision or "main"
        self.origin = f"{_host(constants.ENDPOINT)} at {self.commit[:12]}"
        self.files = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
        self._cached = _cache_of(repo_id) / "snapshots" / self.commit

    def read(self, path: str, start: int, stop: int) -> bytes:
        if (self._cached / path).is_file():
            return read_range(self._cached / path, start, stop, path)
        for attempt in range(_RETRIES + 1):
            try:
                return self._read_once(path, start, stop)
            except _Retryable as error:
                if attempt == _RETRIES:
                    raise HubError(str(error)) from error
                time.sleep(_FIRST_WAIT_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _read_once(self, path: str, start: int, stop: int) -> bytes:
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import hf_raise_for_status

        if stop <= start:
            return b""
        url = hf_hub_url(self.name, path, revision=self.commit)
        headers = {**self._headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        received = bytearray()
        skip = 0
        try:
            # The client follows redirects to the storage host and drops the token on the way; a test holds it to that.
            with (
                _hub_errors(self.name, self.commit, path),
                get_session().stream("GET", url, headers=headers, timeout=self._timeout) as response,
            ):
                if response.status_code in _BUSY:
                    raise _Retryable(f"{path}: the Hub answered {response.status_code}; try again in a minute")
                hf_raise_for_status(response)
                # A server may ignore Range and send the file from its beginning: skip, take what is needed, hang up.
                skip = start if response.status_code == 200 else 0
                for chunk in response.iter_raw():
                    received += chunk
                    if len(received) >= skip + stop - start:
                        break
        except _transport_error() as error:
            got = f"after {len(received):,} of {stop - start:,} bytes" if received else "before any byte"
            raise _Retryable(f"{path}: the connection broke {got} ({_reason(error)}); try again") from error
        data = bytes(received[skip : skip + stop - start])
        if len(data) < stop - start:
            raise CheckpointError(
                f"{path}: the Hub sent {len(data):,} of {stop - start:,} bytes; the file is shorter than its listing says. Try again"
            )
        return data


class _Retryable(Exception):
    """A failure worth another try; its text is the message if the tries run out."""


def cached_snapshot(repo_id: str, revision: str | None = None) -> LocalFolder | None:
    """The Hub cache's copy of a repository, or None; needs no network and imports no HTTP client."""
    from huggingface_hub import constants

    root = _cache_of(repo_id)
    reference = root / "refs" / (revision or constants.DEFAULT_REVISION)
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = root / "snapshots" / commit if commit else None
    if snapshot is None or not snapshot.is_dir():
        return None
    folder = LocalFolder(snapshot, origin=f"Hub cache at {snapshot.name[:12]}")
    folder.name = repo_id
    return folder


def _cache_of(repo_id: str) -> Path:
    """Where the Hub cache keeps a repository (https://huggingface.co/docs/huggingface_hub/guides/manage-cache)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / constants.REPO_ID_SEPARATOR.join(["models", *repo_id.split("/")])


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _knock(endpoint: str, timeout: float) -> None:
    """Find out by one connection whether there is a network, before the fifth of a second that importing HfApi takes.

    Raises:
        HubUnreachableError: the host does not resolve or does not answer. Behind a proxy (which macOS and Windows may set outside
            the environment) that is not for us to find out.
    """
    import socket
    from urllib.parse import urlsplit

    if sys.platform in ("darwin", "win32") or any(
        name.lower() in ("http_proxy", "https_proxy", "all_proxy") and value for name, value in os.environ.items()
    ):
        return
    address = urlsplit(endpoint)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout).close()
    except OSError as error:
        raise HubUnreachableError(f"{_host(endpoint)} cannot be reached ({_reason(error)})") from error


@contextmanager
def _hub_errors(repo_id: str, revision: str | None, path: str = "") -> Iterator[None]:
    """The Hub's answers as one line that says what to do."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo_id}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{repo_id} is gated: accept its terms at {page}, then log in with `hf auth login` or give a token that may "
            "read it (--token or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise TargetError(
            f"{repo_id} has no revision {revision!r}; see the branches and tags at {page}/tree/main"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise TargetError(
            f"{repo_id} is not a model repository on {_host(constants.ENDPOINT)}, or it is private: check the spelling, or log "
            "in with `hf auth login` (--token, HF_TOKEN) if it is yours"
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{path}: listed but not found in {repo_id}; check {page}/tree/{revision}") from error
    except errors.HFValidationError as error:
        raise TargetError(f"{repo_id!r} is neither a file or folder here nor a Hub id (owner/name)") from error
    except errors.OfflineModeIsEnabled as error:
        raise HubUnreachableError("HF_HUB_OFFLINE is set") from error
    except errors.HfHubHTTPError as error:
        raise _http_error(error, repo_id, path) from error
    except _transport_error() as error:
        if path:  # a ranged read: its caller tries again and knows how far it came
            raise
        raise HubUnreachableError(f"{_host(constants.ENDPOINT)} cannot be reached ({_reason(error)})") from error


def _http_error(error: Exception, repo_id: str, path: str) -> HubError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = path or repo_id
    if status in (401, 403):
        return HubError(
            f"{what}: the Hub refused access ({status}); log in with `hf auth login` or give a token that may read "
            f"{repo_id} (--token or HF_TOKEN)"
        )
    if status in _BUSY:
        return HubUnreachableError(f"{what}: the Hub answered {status}; try again in a minute")
    return HubError(f"{what}: the Hub answered {status or _reason(error)}")


def _transport_error() -> type[Exception]:
    """The client's transport error: huggingface_hub 2 is built on httpx2, 1 on httpx."""
    try:
        import httpx2 as client
    except ImportError:
        import httpx as client
    error: type[Exception] = client.TransportError
    return error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _host(endpoint: str) -> str:
    return endpoint.removeprefix("https://").removeprefix("http://").rstrip("/")
