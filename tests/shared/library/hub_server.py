"""A hub small enough for tests: one real HTTP server on loopback that speaks the few calls huggingface_hub makes."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_BYTES = 10_000  # files from this size on are "large" and listed with their sha256


@dataclass
class Repo:
    files: dict[str, bytes]
    gated: bool = False
    listed_bytes: dict[str, int] = field(default_factory=dict)  # sizes the listing lies about
    sent: dict[str, bytes] = field(default_factory=dict)  # bytes that come instead


@dataclass
class HubServer:
    """`log` holds (method, path, Range) of every request; `cuts` and `stalls` act once, after so many bytes."""

    repos: dict[str, Repo] = field(default_factory=dict)
    log: list[tuple[str, str, str | None]] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    stalled: threading.Event = field(default_factory=threading.Event)
    ranges: bool = True

    def __enter__(self) -> "HubServer":
        handler = type("Handler", (_Handler,), {"hub": self, "protocol_version": "HTTP/1.1"})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def gets(self, file: str) -> list[str | None]:
        """Return the Range header of every GET of `file`."""
        return [asked for method, path, asked in self.log if method == "GET" and path.endswith("/" + file)]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._list(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._send(404)

    def _list(self, repo_id: str, revision: str | None) -> None:
        repo = self._repo(repo_id, revision)
        if repo is None:
            return
        siblings = [_sibling(name, data, repo) for name, data in repo.files.items()]
        listing = {"id": repo_id, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False, "downloads": 0}
        self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def _repo(self, repo_id: str, revision: str | None) -> Repo | None:
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            self._send(401, headers={"X-Error-Code": "RepoNotFound"})
        elif revision not in {None, "main", COMMIT}:
            self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
            return None
        return repo

    def _file(self, repo_id: str, revision: str, name: str) -> None:
        repo = self._repo(repo_id, revision)
        if repo is None:
            return
        if repo.gated:
            self._send(403, headers={"X-Error-Code": "GatedRepo"})
        elif name not in repo.files:
            self._send(404, headers={"X-Error-Code": "EntryNotFound"})
        else:
            self._bytes(name, repo.sent.get(name, repo.files[name]), _etag(repo.files[name]))

    def _bytes(self, name: str, data: bytes, etag: str) -> None:
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"', "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start and self.hub.ranges:
            headers["Content-Range"] = f"bytes {start[1]}-{len(data) - 1}/{len(data)}"
            self._send(206, data[int(start[1]) :], headers, name)
        else:
            self._send(200, data, headers, name)

    def _send(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None, name: str = "") -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self._body(name, data)

    def _body(self, name: str, data: bytes) -> None:
        if name in self.hub.cuts:
            self.wfile.write(data[: self.hub.cuts.pop(name)])
            self.close_connection = True
        elif name in self.hub.stalls:
            self.wfile.write(data[: self.hub.stalls.pop(name)])
            self.hub.stalled.set()
            self._wait_for_end()
        else:
            self.wfile.write(data)

    def _wait_for_end(self) -> None:
        """Send nothing more until the other side closes."""
        self.connection.settimeout(30)
        try:
            while self.connection.recv(1):
                pass
        except (TimeoutError, ConnectionError):
            pass
        self.close_connection = True


def _etag(data: bytes) -> str:
    if len(data) >= LFS_BYTES:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sibling(name: str, data: bytes, repo: Repo) -> dict[str, object]:
    size = repo.listed_bytes.get(name, len(data))
    listed: dict[str, object] = {"rfilename": name, "size": size, "blobId": _etag(data)[:40]}
    if len(data) >= LFS_BYTES:
        listed["lfs"] = {"sha256": _etag(data), "size": size, "pointerSize": 130}
    return listed
