"""A hub-shaped HTTP server on loopback: what huggingface_hub asks of the Hugging Face hub, and the faults it may show."""

import hashlib
import json
import re
import sys
import threading
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
_LARGE = (".safetensors", ".onnx", ".bin", ".pt", "_data", ".data")


@dataclass(frozen=True)
class Request:
    """What was asked; ``headers`` with their names in small letters."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Faults:
    """What goes wrong: with the server, with one of its files, or with the content of one (those by name)."""

    status: int | None = None  # every answer
    code: str | None = None  # the hub's own name of that error
    page: bytes | None = None  # every answer is this page, as in a network that wants a login
    sha: str | None = None  # the commit that is told
    token: str | None = None  # what must be sent to be answered
    slow: float = 0.0  # seconds before any answer
    file_status: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)  # the connection breaks after so many bytes, once
    stall: dict[str, int] = field(default_factory=dict)  # nothing comes after so many bytes
    wrong: dict[str, bytes] = field(default_factory=dict)
    ignores_range: bool = False
    elsewhere: int | None = None  # what the other host answers


class HubServer:
    """Serves repositories ``{"org/name": {path: bytes}}``; a context manager.

    ``elsewhere``: large files come from another host, as the hub's do; ``xet``: or in chunks, if one likes.
    """

    def __init__(self, repositories: MutableMapping[str, MutableMapping[str, bytes]]) -> None:
        self.repositories = repositories
        self.revisions = {"main": COMMIT, "v1": COMMIT, "refs/pr/1": COMMIT, COMMIT: COMMIT, OTHER_COMMIT: OTHER_COMMIT}
        self.renamed: dict[str, str] = {}  # by their old names
        self.requests: list[Request] = []
        self.faults = Faults()
        self.elsewhere = self.xet = False
        self.stalled, self.stopped = threading.Event(), threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def other_host(self) -> str:
        return f"http://localhost:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def downloads(self) -> list[str]:
        """The files whose content was asked for, in order."""
        return [
            request.path.split("/resolve/", 1)[1].split("/", 1)[1]
            for request in self.requests
            if request.method == "GET" and "/resolve/" in request.path
        ]

    def ranges(self, name: str) -> list[str | None]:
        """The part of a file that each request for its content asked for."""
        return [
            request.headers.get("range")
            for request in self.requests
            if request.method == "GET" and request.path.endswith(f"/{name}")
        ]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Whoever asks may go away in the middle of an answer.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(self.path.split("?", 1)[0])
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Request(self.command, path, headers))
        faults = self.hub.faults
        if faults.slow:
            self.hub.stopped.wait(faults.slow)
        if faults.page is not None:
            self._send(200, faults.page, {"Content-Type": "text/html"})
        elif faults.status is not None:
            self._refuse(faults.status, faults.code)
        elif old := next((old for old in self.hub.renamed if f"/{old}" in path), None):
            self._send(307, b"", {"Location": self.path.replace(f"/{old}", f"/{self.hub.renamed[old]}")})
        elif found := re.fullmatch(r"/elsewhere/([^/]+/[^/]+)/(.+)", path):
            if faults.elsewhere is not None:
                return self._refuse(faults.elsewhere, None)
            self._content(found[2], self.hub.repositories[found[1]][found[2]], {})
        elif faults.token is not None and headers.get("authorization") != f"Bearer {faults.token}":
            self._refuse(401, "GatedRepo")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            self._describe(found[1], found[3] or "main", tree=found[2] == "tree")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3])
        else:
            self._refuse(404, None)
        return None

    def _missing(self, repository: str, revision: str) -> str | None:
        if repository not in self.hub.repositories:
            return "RepoNotFound"
        return None if revision in self.hub.revisions else "RevisionNotFound"

    def _describe(self, repository: str, revision: str, *, tree: bool) -> None:
        if (missing := self._missing(repository, revision)) is not None:
            return self._refuse(404, missing)
        body: Any
        if tree:
            files = self.hub.repositories[repository].items()
            body = [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files]
        else:
            siblings = [_sibling(name, data) for name, data in self.hub.repositories[repository].items()]
            sha = self.hub.faults.sha or self.hub.revisions[revision]
            body = {"_id": "1", "id": repository, "modelId": repository, "sha": sha, "siblings": siblings}
        return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, revision: str, name: str) -> None:
        missing = self._missing(repository, revision)
        if missing is None and name not in self.hub.repositories[repository]:
            missing = "EntryNotFound"
        if missing is not None:
            return self._refuse(404, missing)
        if (status := self.hub.faults.file_status.get(name)) is not None:
            return self._refuse(status, self.hub.faults.code)
        data = self.hub.repositories[repository][name]
        headers = {
            "X-Repo-Commit": self.hub.revisions[revision],
            "ETag": f'"{_digest(name, data)}"',
            "X-Linked-Etag": f'"{_digest(name, data)}"',
            "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
        }
        if self.hub.xet and name.endswith(_LARGE):
            headers |= {"X-Xet-Hash": "a" * 64, "X-Xet-Refresh-Route": f"{self.hub.url}/xet"}
        if self.hub.elsewhere and name.endswith(_LARGE):
            location = f"{self.hub.other_host}/elsewhere/{repository}/{name}?Signature=secret"
            return self._send(302, b"", {**headers, "Location": location})
        return self._content(name, data, headers)

    def _content(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        faults = self.hub.faults
        data = faults.wrong.get(name, data)
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not faults.ignores_range:
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if start >= len(data) > 0:
            return self._refuse(416, None)
        data = data[start:]
        if self.command == "HEAD" or name not in {*faults.cut, *faults.stall}:
            return self._send(status, data, headers)
        self._start(status, len(data), headers)
        self.wfile.write(data[: faults.cut.pop(name, None) or faults.stall.get(name)])
        self.wfile.flush()
        if name in faults.stall:
            self.hub.stalled.set()
            self.hub.stopped.wait(30)
        return None

    def _refuse(self, status: int, code: str | None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": f"refused: {code}"} if code else {}
        self._send(status, b'{"error": "refused"}', {"Content-Type": "application/json", **headers})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self._start(status, len(data), headers)
        if self.command != "HEAD":
            self.wfile.write(data)

    def _start(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()


def _oid(data: bytes) -> str:
    """The name of a file's content in git."""
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


def _digest(name: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if name.endswith(_LARGE) else _oid(data)


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": _oid(data)}
    if name.endswith(_LARGE):
        # In git there is a pointer to a large file.
        entry["blobId"] = _oid(f"sha256:{_digest(name, data)}".encode())
        entry["lfs"] = {"sha256": _digest(name, data), "size": len(data), "pointerSize": 130}
    return entry
