"""A hub-shaped HTTP server on loopback: what huggingface_hub asks of the Hugging Face hub, and the faults it may show."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = (".safetensors", ".onnx", ".bin", ".pt", "_data")


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Faults:
    """What goes wrong. ``cut``: bytes after which the connection to a file breaks, once."""

    cut: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, bytes] = field(default_factory=dict)
    status: int | None = None
    code: str | None = None
    token: str | None = None


class HubServer:
    """Serves repositories ``{"org/name": {path: bytes}}``; a context manager that gives its address."""

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = repositories
        self.revisions = {"main": COMMIT, "v1": COMMIT, COMMIT: COMMIT}
        self.requests: list[Request] = []
        self.faults = Faults()
        server = self

        class Handler(_Handler):
            hub = server

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def downloads(self) -> list[str]:
        """The files whose content was asked for, in order."""
        return [
            request.path.split("/resolve/", 1)[1].split("/", 1)[1]
            for request in self.requests
            if self._is_file(request)
        ]

    def _is_file(self, request: Request) -> bool:
        return request.method == "GET" and "/resolve/" in request.path


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, *, head: bool) -> None:
        path = self.path.split("?", 1)[0]
        self.hub.requests.append(Request(self.command, path, dict(self.headers)))
        faults = self.hub.faults
        if faults.token is not None and self.headers.get("Authorization") != f"Bearer {faults.token}":
            return self._refuse(401, faults.code or "GatedRepo")
        if faults.status is not None:
            return self._refuse(faults.status, faults.code)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._describe(found[1], found[2] or "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], found[2], found[3], head=head)
        return self._refuse(404, None)

    def _describe(self, repository: str, revision: str) -> None:
        files = self.hub.repositories.get(repository)
        if files is None:
            return self._refuse(404, "RepoNotFound")
        if revision not in self.hub.revisions:
            return self._refuse(404, "RevisionNotFound")
        siblings = [self._sibling(name, data) for name, data in files.items()]
        body = {"id": repository, "modelId": repository, "sha": self.hub.revisions[revision], "siblings": siblings}
        return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        if name.endswith(_LARGE):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def _file(self, repository: str, revision: str, name: str, *, head: bool) -> None:
        files = self.hub.repositories.get(repository)
        if files is None:
            return self._refuse(404, "RepoNotFound")
        if revision not in self.hub.revisions:
            return self._refuse(404, "RevisionNotFound")
        if name not in files:
            return self._refuse(404, "EntryNotFound")
        data = files[name]
        digest = hashlib.sha256(data) if name.endswith(_LARGE) else hashlib.sha1(data)
        headers = {
            "X-Repo-Commit": self.hub.revisions[revision],
            "ETag": f'"{digest.hexdigest()}"',
            "X-Linked-Etag": f'"{digest.hexdigest()}"',
            "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
        }
        data = self.hub.faults.wrong.get(name, data)
        if head:
            return self._send(200, data, headers, body=False)
        return self._content(name, data, headers)

    def _content(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        start, status, total = 0, 200, len(data)
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(found[1]), 206
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        cut = self.hub.faults.cut.pop(name, None)
        if cut is None:
            return self._send(status, data[start:], headers)
        self._start(status, total - start, headers)
        self.wfile.write(data[start : start + cut])
        self.wfile.flush()
        time.sleep(0.05)
        self.close_connection = True
        self.connection.close()
        return None

    def _refuse(self, status: int, code: str | None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": f"refused: {code}"} if code else {}
        self._send(status, b'{"error": "refused"}', {"Content-Type": "application/json", **headers})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], *, body: bool = True) -> None:
        self._start(status, len(data), headers)
        if body and self.command != "HEAD":
            self.wfile.write(data)

    def _start(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
