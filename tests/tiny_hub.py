"""A read-only Hub of a few small files, on this machine, for huggingface_hub to talk to."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants


@dataclass
class Repo:
    """What one repository holds at its only commit."""

    files: dict[str, bytes]
    gated: bool = False
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        self.sha = hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class Hub:
    """Repositories by id, and every request that came, as "METHOD path"."""

    repos: dict[str, Repo] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    broken: bool = False

    def fetched(self) -> set[str]:
        """The files whose contents were sent."""
        return {
            line.rsplit("/", 1)[-1]
            for line in self.seen
            if line.startswith("GET /") and "/resolve/" in line
        }


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Point huggingface_hub at a new, empty Hub and cache."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: Any) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def send(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def refuse(self, code: int, what: str) -> None:
            self.send(code, b"{}", X_Error_Code=what, X_Error_Message=what)

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.seen.append(f"{self.command} {path}")
            if hub.broken:
                return self.refuse(418, "Teapot")
            match = re.fullmatch(
                r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path
            ) or re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path)
            if match is None:
                return self.refuse(404, "NoSuchRoute")
            repo, verb, revision = hub.repos.get(match[1]), match[2], match[3] or "main"
            if repo is None:
                return self.refuse(401, "RepoNotFound")
            if revision not in ("main", repo.sha):
                return self.refuse(404, "RevisionNotFound")
            if verb == "resolve":
                return self.file(repo, match[4])
            listing = [
                {"type": "file", "path": n, "rfilename": n, "size": len(b), "oid": _oid(b)}
                for n, b in repo.files.items()
            ]
            whole = {"id": match[1], "sha": repo.sha, "siblings": listing}
            self.send(200, json.dumps(listing if verb == "tree" else whole).encode())

        def file(self, repo: Repo, name: str) -> None:
            if repo.gated:
                return self.refuse(403, "GatedRepo")
            if name not in repo.files:
                return self.refuse(404, "EntryNotFound")
            raw = repo.files[name]
            self.send(200, raw, X_Repo_Commit=repo.sha, ETag=f'"{_oid(raw)}"')

    return Handler


def _oid(raw: bytes) -> str:
    return hashlib.sha1(raw).hexdigest()
