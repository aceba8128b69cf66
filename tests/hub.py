"""A small Hugging Face Hub on loopback: the real protocol (model info, tree, resolve with ETag, redirect to storage, Range,
gated and private repositories) for the real huggingface_hub client, and the ways a server can misbehave.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.checkpoints import SparseFile

COMMIT = "c0ffee" + "0" * 34
_LARGE = (".safetensors", ".gguf", ".bin")
_FIVE_GB = 5 * 10**9


@dataclass
class Repo:
    """A repository and how the server is to behave about it."""

    files: Mapping[str, bytes | SparseFile]
    gated: bool = False
    private_token: str | None = None
    #: "ignore-range", "cut", "cut-once", "hang", "503", "503-once", "short-listing"
    fault: str = ""
    latency: float = 0.0
    revisions: tuple[str, ...] = ("main", COMMIT)


@dataclass
class Request:
    """What the server saw."""

    host: str
    path: str
    authorization: str | None
    range: str | None
    sent: int = 0


@dataclass
class Hub:
    """The running server. ``url`` is the Hub, ``storage`` a second host that large files are redirected to."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    storage: str = ""
    #: Requests being answered now, and the most there ever were.
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, repo_id: str, files: Mapping[str, bytes | SparseFile], **behaviour: Any) -> str:
        self.repos[repo_id] = Repo(files, **behaviour)
        return repo_id

    def start(self) -> Hub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        port = server.server_address[1]
        # The same server under two names: to an HTTP client they are different hosts, as huggingface.co and its CDN are.
        hub.url, hub.storage = f"http://localhost:{port}", f"http://127.0.0.1:{port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return hub


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = urlsplit(self.path)
        self._seen = Request(
            self.headers.get("Host", ""), parts.path, self.headers.get("Authorization"), self.headers.get("Range")
        )
        self.hub.requests.append(self._seen)
        with self.hub.lock:
            self.hub.in_flight += 1
            self.hub.most_in_flight = max(self.hub.most_in_flight, self.hub.in_flight)
        path = unquote(parts.path)
        try:
            if match := re.match(r"^/api/models/(?P<id>[^/]+/[^/]+)(/revision/(?P<rev>[^/]+))?$", path):
                self._info(match["id"], match["rev"] or "main", "blobs" in parse_qs(parts.query))
            elif match := re.match(r"^/api/models/(?P<id>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)", path):
                self._tree(match["id"], match["rev"])
            elif match := re.match(r"^/storage/(?P<id>[^/]+/[^/]+)/(?P<path>.+)$", path):
                self._storage(self.hub.repos[match["id"]], match["path"], body)
            elif match := re.match(r"^/(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)$", path):
                self._resolve(match["id"], match["rev"], match["path"], body)
            else:
                self._error(404, "RepoNotFound", "no such page")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.hub.lock:
                self.hub.in_flight -= 1

    def _repo(self, repo_id: str, revision: str) -> Repo | None:
        repo = self.hub.repos.get(repo_id)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo is None or (repo.private_token and token != repo.private_token):
            # The Hub does not tell strangers whether a repository exists.
            self._error(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        time.sleep(repo.latency)
        if repo.fault == "503" or (repo.fault == "503-once" and self._first_time(repo)):
            self._error(503, "", "Service unavailable")
            return None
        if repo.fault == "hang":
            time.sleep(60)
        if revision not in repo.revisions:
            self._error(404, "RevisionNotFound", "Invalid rev id")
            return None
        return repo

    def _first_time(self, repo: Repo) -> bool:
        return sum(1 for r in self.hub.requests if r.path == self._seen.path) == 1 and "/resolve/" in self._seen.path

    def _siblings(self, repo: Repo) -> list[dict[str, Any]]:
        result = []
        for path, content in repo.files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": _size(content), "blobId": "b" * 40}
            if path.endswith(_LARGE):
                entry["lfs"] = {"sha256": "a" * 64, "size": _size(content), "pointerSize": 135}
            result.append(entry)
        return result

    def _info(self, repo_id: str, revision: str, blobs: bool) -> None:
        repo = self._repo(repo_id, revision)
        if repo is None:
            return
        siblings = self._siblings(repo)
        if not blobs:
            siblings = [{"rfilename": s["rfilename"]} for s in siblings]
        config = repo.files.get("config.json", b"{}")
        summary = json.loads(config) if isinstance(config, bytes) and config.startswith(b"{") else {}
        summary = {key: summary[key] for key in ("architectures", "model_type") if key in summary}
        self._json({"_id": "0", "id": repo_id, "modelId": repo_id, "sha": COMMIT, "private": False, "gated": "manual" if repo.gated else False, "tags": ["transformers"], "library_name": "transformers", "downloads": 0, "likes": 0, "config": summary, "siblings": siblings})  # fmt: skip

    def _tree(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id, revision)
        if repo is not None:
            self._json(
                [{"type": "file", "oid": "b" * 40, "path": path, "size": _size(c)} for path, c in repo.files.items()]
            )

    def _resolve(self, repo_id: str, revision: str, path: str, body: bool) -> None:
        repo = self._repo(repo_id, revision)
        if repo is None:
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo.gated and token != "may-read":
            code = 403 if token else 401
            self._error(code, "GatedRepo", "Access to model is restricted")
            return
        content = repo.files.get(path)
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        if path.endswith(_LARGE):
            self.send_response(302)
            self.send_header("Location", f"{self.hub.storage}/storage/{repo_id}/{path}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(_size(content)))
            self.send_header("X-Linked-Etag", '"' + "a" * 64 + '"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._file(repo, content, body)

    def _storage(self, repo: Repo, path: str, body: bool) -> None:
        time.sleep(repo.latency)
        self._file(repo, repo.files[path], body)

    def _file(self, repo: Repo, content: bytes | SparseFile, body: bool) -> None:
        size = _size(content)
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if repo.fault == "ignore-range":
            self._endless(content)
            return
        start, stop = 0, size
        if wanted:
            start, stop = int(wanted[1]), min(size, int(wanted[2]) + 1 if wanted[2] else size)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("ETag", '"' + "b" * 40 + '"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if not body:
            return
        data = _read(content, start, stop)
        path = self._seen.path
        if repo.fault == "cut" or (
            repo.fault == "cut-once" and sum(1 for r in self.hub.requests if r.path == path) == 1
        ):
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)
        self._seen.sent += len(data)

    def _endless(self, content: bytes | SparseFile) -> None:
        """Range ignored: 200 and five gigabytes, for as long as the client listens."""
        self.send_response(200)
        self.send_header("Content-Length", str(_FIVE_GB))
        self.end_headers()
        at, piece = 0, 1 << 16
        while at < _FIVE_GB:
            data = _read(content, at, at + piece).ljust(piece, b"\0")
            self.wfile.write(data)
            self._seen.sent += len(data)
            at += piece

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _size(content: bytes | SparseFile) -> int:
    return content.size if isinstance(content, SparseFile) else len(content)


def _read(content: bytes | SparseFile, start: int, stop: int) -> bytes:
    return content.read(start, stop) if isinstance(content, SparseFile) else content[start:stop]
