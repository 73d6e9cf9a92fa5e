"""A Hugging Face hub on this machine: ranges, revisions, gated and missing repositories."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


@dataclass
class Hub:
    """What the hub serves, and how it fails.

    `files` are by (repository, path), `commit` is that of every branch, `closed` repositories are
    gated. After `left` bytes of files every connection breaks.
    """

    address: str = ""
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    commit: str = "a" * 40
    closed: set[str] = field(default_factory=set)
    # a digest to announce instead of the file's
    announced: dict[tuple[str, str], str] = field(default_factory=dict)
    left: int | None = None
    # bytes after which each of the next answers breaks
    breaks: list[int] = field(default_factory=list)
    # status codes of the next requests for files
    refusals: list[int] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    wait: int = 0  # seconds in a refusal's Retry-After
    elsewhere: str = ""  # the address of the store that serves large files
    silent: int = 0  # how many of the next large files stop halfway
    over: threading.Event = field(default_factory=threading.Event)
    # the token that each server received
    tokens: list[tuple[str, str | None]] = field(default_factory=list)

    def info(self, name: str) -> dict:
        siblings = [
            {
                "rfilename": path,
                "size": len(data),
                "blobId": self._blob(repo, path, data),
                "lfs": self._lfs(repo, path, data),
            }
            for (repo, path), data in self.files.items()
            if repo == name
        ]
        return {
            "id": name,
            "sha": self.commit,
            "siblings": siblings,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }

    def _blob(self, repo: str, path: str, data: bytes) -> str:
        return (
            self.announced.get((repo, path))
            or hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        )

    def _lfs(self, repo: str, path: str, data: bytes) -> dict | None:
        if path.endswith(".json"):
            return None
        return {"sha256": self.digest(repo, path), "size": len(data), "pointerSize": 130}

    def digest(self, repo: str, path: str) -> str:
        return (
            self.announced.get((repo, path)) or hashlib.sha256(self.files[repo, path]).hexdigest()
        )


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve on a loopback port while the block lasts."""
    found = Hub()
    servers = []
    for name in ("hub", "store"):
        server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": found, "name": name})
        )
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    found.address, found.elsewhere = (
        f"http://127.0.0.1:{server.server_address[1]}" for server in servers
    )
    try:
        yield found
    finally:
        found.over.set()
        for server in servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    name: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        store = "/store" if self.name == "store" else ""
        self.hub.asked.append((self.command, store + path, self.headers.get("Range", "")))
        self.hub.tokens.append((self.name, self.headers.get("Authorization")))
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            self._info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        else:
            parts = parts[1:] if parts[0] == "datasets" else parts
            self._file("/".join(parts[:2]), "/".join(parts[4:]), body)

    def _refused(self, name: str, revision: str = "main") -> bool:
        if name in self.hub.closed:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "closed"})
        elif not any(repo == name for repo, _ in self.hub.files):
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "none"})
        elif revision not in ("main", self.hub.commit):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "none"})
        else:
            return False
        return True

    def _info(self, name: str, revision: str) -> None:
        if not self._refused(name, revision):
            self._send(
                200, json.dumps(self.hub.info(name)).encode(), {"Content-Type": "application/json"}
            )

    def _file(self, name: str, path: str, body: bool) -> None:
        if self._refused(name):
            return
        if body and self.hub.refusals:
            wait = {"Retry-After": str(self.hub.wait)} if self.hub.wait else {}
            self._send(self.hub.refusals.pop(0), b"busy", wait)
            return
        if body and self.name == "hub" and not path.endswith(".json"):
            self._send(302, b"", {"Location": self.hub.elsewhere + self.path})
            return
        data = self.hub.files[name, path]
        headers = {
            "X-Repo-Commit": self.hub.commit,
            "ETag": f'"{self.hub.digest(name, path)}"',
            "Accept-Ranges": "bytes",
        }
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first or 0), min(int(last or len(data)), len(data) - 1)
        rest = data[start : end + 1]
        if start or last:
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        halt = False
        cut = (
            self.hub.left
            if body and self.hub.left is not None and self.hub.left < len(rest)
            else None
        )
        if body and cut is None and self.hub.breaks and not path.endswith(".json"):
            cut = self.hub.breaks.pop(0)
        if body and self.hub.silent and not path.endswith(".json"):
            self.hub.silent -= 1
            cut, halt = len(rest) // 2, True
        if body and self.hub.left is not None:
            self.hub.left = max(0, self.hub.left - len(rest))
        self._send(206 if start or last else 200, rest, headers, body, cut, halt)

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str],
        body=True,
        cut: int | None = None,
        halt=False,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.wfile.flush()
            if halt:
                self.hub.over.wait(60)
            self.close_connection = True
            self.connection.close()
