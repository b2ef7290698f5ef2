"""A small Hub in a process of its own: what huggingface_hub 2.4 pushes to and pulls from.

    with started("lfs") as server: ...

It knows repositories, commits, branches, tags, pull requests, LFS and xet uploads, searches,
collections, private and gated repositories. `server.do(...)` looks into it and breaks it. Xet needs
no storage service: hf_xet keeps its files in a folder if it is told of one as `local://`.
"""

import base64
import glob
import hashlib
import json
import re
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml  # type: ignore[import-untyped]

LARGE = (".safetensors", ".gguf", ".npz", ".pt", ".png")  # what a new repository sends to LFS
TOKEN = "hf_test"
YAML = ("errors", "warnings")


class State:
    """All that the server holds; `blobs` are LFS uploads by sha256."""

    def __init__(self, mode: str, xet: str, user: str) -> None:
        self.mode, self.xet, self.user = mode, xet, user
        self.repos: dict[str, Any] = {}
        self.blobs: dict[str, bytes] = {}
        self.collections: dict[str, Any] = {}
        self.log: list[str] = []
        self.fail: list[Any] = []  # [status, regular expression of "METHOD path", how often]
        self.yaml: dict[str, list[str]] = {}  # "errors" and "warnings" that it has for every card
        self.cut = ""  # a regular expression of paths whose bodies stop in the middle, once
        self.lock = threading.RLock()

    def create(self, repo: str, private: bool, gated: bool = False) -> Any:
        made = {"id": repo, "private": private, "gated": gated, "commits": {}, "refs": {}}
        made |= {"tags": {}, "downloads": 0, "created": time.time(), "pulls": 0}
        self.repos[repo] = made
        kinds = "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LARGE)
        self.commit(made, "main", "initial commit", {".gitattributes": entry(kinds.encode())})
        return made

    def commit(self, repo: Any, branch: str, title: str, files: dict[str, Any]) -> str:
        parent = repo["refs"].get(branch)
        parts = [repo["id"], parent, title, time.time_ns(), sorted(files)]
        sha = hashlib.sha1(json.dumps(parts).encode()).hexdigest()
        repo["commits"][sha] = {"sha": sha, "title": title, "files": files, "parent": parent}
        repo["refs"][branch] = sha
        return sha

    def resolve(self, repo: Any, revision: str) -> Any:
        name = "main" if revision == "HEAD" else revision
        sha = repo["refs"].get(name) or repo["tags"].get(name) or name
        return repo["commits"].get(sha)

    def do(self, verb: str, words: dict[str, Any]) -> Any:
        """What a test asks for: look, change, break."""
        if verb == "put":
            private, gated = words.get("private", False), words.get("gated", False)
            repo = self.repos.get(words["repo"]) or self.create(words["repo"], private, gated)
            files = dict(self.resolve(repo, "main")["files"]) if words.get("keep") else {}
            for name, text in words["files"].items():
                data = base64.b64decode(text)
                files[name] = entry(data, name.endswith(LARGE) and self.mode != "regular")
            repo["downloads"] = words.get("downloads", 0)
            return self.commit(repo, "main", "put", files)
        if verb == "tamper":  # other bytes under the same commit and the same hash
            for commit in self.repos[words["repo"]]["commits"].values():
                if words["file"] in commit["files"]:
                    found = dict(commit["files"][words["file"]])
                    found["data"] = base64.b64decode(words["data"])
                    if words.get("rehash"):
                        found = entry(found["data"], found["lfs"])
                    found["size"] = len(found["data"])
                    commit["files"][words["file"]] = found
            return None
        if verb == "set":
            for key, value in words.items():
                setattr(self, key, value)
            return None
        if verb == "tag":
            repo = self.repos[words["repo"]]
            repo["tags"][words["tag"]] = self.resolve(repo, "main")["sha"]
            return None
        if verb == "repo":
            repo = self.repos.get(words["repo"])
            return repo and {
                **{key: repo[key] for key in ("private", "refs", "tags", "pulls")},
                "commits": [c["title"] for c in repo["commits"].values()],
                "files": sorted(self.resolve(repo, words.get("revision", "main"))["files"]),
            }
        if verb == "file":
            found = self.resolve(self.repos[words["repo"]], "main")["files"][words["file"]]
            return base64.b64encode(found["data"] or b"").decode()
        if verb == "xet":
            files = self.resolve(self.repos[words["repo"]], "main")["files"]
            return sorted(name for name, found in files.items() if found.get("xet"))
        return {"log": self.log, "collections": self.collections}[verb]


def entry(data: bytes, lfs: bool = False) -> dict[str, Any]:
    sha = hashlib.sha256(data).hexdigest()
    return (
        {**pointer(sha, len(data)), "data": data}
        if lfs
        else {
            "data": data,
            "size": len(data),
            "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            "sha256": sha,
            "lfs": False,
        }
    )


def pointer(sha: str, size: int) -> dict[str, Any]:
    """The entry of a large file, of which git holds a pointer."""
    body = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n".encode()
    oid = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    return {"data": None, "size": size, "oid": oid, "sha256": sha, "lfs": True, "git": len(body)}


def xet_hashes(folder: str) -> dict[str, str]:
    """sha256 -> xet hash of every file that hf_xet describes in a folder's shards."""
    found = {}
    for path in glob.glob(f"{folder}/xet/xorbs/shards/*.mdb"):
        raw, at = Path(path).read_bytes(), 48

        def hexadecimal(at: int, raw: bytes = raw) -> str:
            return "".join(f"{part:016x}" for part in struct.unpack_from("<4Q", raw, at))

        while raw[at : at + 32] != b"\xff" * 32:
            start, (flags, count) = at, struct.unpack_from("<II", raw, at + 32)
            at += 48 + 48 * count * (2 if flags >> 31 & 1 else 1)
            if flags >> 30 & 1:
                found[hexadecimal(at)] = hexadecimal(start)
                at += 48
    return found


def card_of(files: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A repository's metadata and the tags that the Hub makes of it."""
    readme = files["README.md"]["data"].decode() if "README.md" in files else ""
    found = re.match(r"---\n(.*?)\n---\n", readme, re.S)
    card: dict[str, Any] = (yaml.safe_load(found[1]) or {}) if found else {}

    def several(key: str) -> list[str]:
        value = card.get(key) or []
        return value if isinstance(value, list) else [value]

    tags = several("library_name") + several("tags") + several("language")
    tags += [kind for kind in ("gguf", "safetensors") if any(f.endswith(kind) for f in files)]
    relation = card.get("base_model_relation")
    for base in several("base_model"):
        tags += [f"base_model:{base}"] + ([f"base_model:{relation}:{base}"] if relation else [])
    return card, tags + [f"license:{name}" for name in several("license")]


def described(name: str, found: dict[str, Any]) -> dict[str, Any]:
    told = {"type": "file", "path": name, "oid": found["oid"], "size": found["size"]}
    if found["lfs"]:
        told["lfs"] = {"oid": found["sha256"], "size": found["size"], "pointerSize": found["git"]}
    return told | ({"xetHash": found["xet"]} if found.get("xet") else {})


def about(repo: Any, commit: Any, full: bool = True) -> dict[str, Any]:
    card, tags = card_of(commit["files"])
    told = {"id": repo["id"], "sha": commit["sha"], "private": repo["private"], "tags": tags}
    told |= {"downloads": repo["downloads"], "cardData": card, "gated": repo["gated"]}
    told |= {"lastModified": "2026-01-02T03:04:05.000Z", "author": repo["id"].partition("/")[0]}
    return told | ({"siblings": [{"rfilename": n} for n in commit["files"]]} if full else {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # each answer would wait 40 ms
    state: State

    def log_message(self, *words: Any) -> None:
        """Say nothing."""

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while True:
            count = int(self.rfile.readline().split(b";")[0], 16)
            whole += self.rfile.read(count)
            self.rfile.readline()
            if count == 0:
                return whole

    def send(self, code: int, value: Any = None, raw: bytes | None = None, **more: Any) -> None:
        data = raw if raw is not None else json.dumps({} if value is None else value).encode()
        self.send_response(code)
        headers = {"Content-Length": len(data), **{k.replace("_", "-"): v for k, v in more.items()}}
        for key, text in headers.items():
            self.send_header(key, str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code: int, kind: str, said: str, **more: Any) -> None:
        self.send(code, {"error": said}, X_Error_Code=kind, X_Error_Message=said, **more)

    def answer(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query, keep_blank_values=True)
        data = self.body()
        with self.state.lock:
            if parts.path.startswith("/_do/"):
                found = self.state.do(parts.path[5:], json.loads(data))
                return self.send(200, raw=json.dumps(found).encode())
            line = f"{self.command} {parts.path}"
            self.state.log.append(line)
            for rule in self.state.fail:
                if rule[2] > 0 and re.search(rule[1], line):
                    rule[2] -= 1
                    return self.refuse(rule[0], "", "refused by the test")
            token = self.headers.get("Authorization")
            self.signed = token == f"Bearer {TOKEN}"
            if token and not self.signed and not parts.path.startswith("/lfs/"):
                return self.unsigned()
            return self.route(self.command, parts.path, data)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def unsigned(self) -> None:
        self.refuse(401, "", "Invalid credentials in Authorization header")

    def route(self, method: str, path: str, data: bytes) -> None:
        state, base = self.state, f"http://{self.headers['Host']}"
        if path == "/api/validate-yaml":
            remarks = {kind: [{"message": m} for m in state.yaml.get(kind, [])] for kind in YAML}
            return self.send(400 if remarks["errors"] else 200, remarks)
        if path == "/api/whoami-v2":
            if not self.signed:
                return self.unsigned()
            return self.send(200, {"type": "user", "name": state.user, "orgs": [], "auth": {}})
        if path == "/api/models" and method == "GET":
            return self.models()
        if lfs := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            good = hashlib.sha256(data).hexdigest() == lfs[1]
            state.blobs |= {lfs[1]: data} if good else {}
            return self.send(200 if good else 400)
        if method in ("POST", "DELETE") and "paths-info" not in path and not self.signed:
            return self.unsigned()
        asked = {} if b"\n" in data.strip() else json.loads(data or b"{}")
        if path == "/lfs-verify":
            return self.send(
                200 if len(state.blobs.get(asked["oid"], b"")) == asked["size"] else 404
            )
        if path == "/api/repos/create":
            name = f"{asked.get('organization') or state.user}/{asked['name']}"
            if asked.get("organization") not in (None, state.user):
                return self.refuse(403, "", "You don't have the rights to create a model here")
            if name in state.repos:
                return self.send(409, {"error": "it exists", "url": f"{base}/{name}"})
            state.create(name, bool(asked.get("private")) or asked.get("visibility") == "private")
            return self.send(200, {"url": f"{base}/{name}"})
        if path.startswith("/api/collections"):
            return self.collection(path, asked)
        if lfs := re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            return self.batch(asked, base)
        found = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.*))?)?)?", path
        ) or re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path)
        if not found:
            return self.refuse(404, "", f"no route {method} {path}")
        repo, verb, rest = state.repos.get(found[1]), found[2], unquote(found[4] or "")
        if repo is None or (repo["private"] and not self.signed):
            return self.refuse(404 if self.signed else 401, "RepoNotFound", "Repository not found")
        revision = unquote(found[3] or "main")
        commit = state.resolve(repo, revision)
        if verb in ("xet-read-token", "xet-write-token") and state.xet:
            kept, until = f"local://{state.xet}", int(time.time()) + 3600
            told = {"accessToken": "cas", "exp": until, "casUrl": kept}
            headers: dict[str, Any] = {"X_Xet_Cas_Url": kept, "X_Xet_Access_Token": "cas"}
            return self.send(200, told, X_Xet_Token_Expiration=until, **headers)
        if verb == "branch":
            if revision in repo["refs"]:
                return self.refuse(409, "", "Reference already exists")
            repo["refs"][revision] = repo["refs"]["main"]
            return self.send(200)
        if commit is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.of_repo(method, repo, verb, revision, commit, rest, data, base)

    def of_repo(
        self, method: str, repo: Any, verb: str, revision: str, commit: Any, rest: str, data: bytes,
        base: str,
    ) -> None:  # fmt: skip
        files = commit["files"]
        if verb in (None, "revision"):
            return self.send(200, about(repo, commit))
        if verb == "tree":
            return self.send(200, [described(*item) for item in sorted(files.items())])
        if verb == "paths-info":
            wanted = parse_qs(data.decode()).get("paths", [])
            return self.send(200, [described(n, files[n]) for n in wanted if n in files])
        if verb == "tag":
            repo["tags"][json.loads(data)["tag"]] = commit["sha"]
            return self.send(200)
        if verb == "preupload":
            large = LARGE if self.state.mode != "regular" else ()
            answer = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(large or "\0") else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(files.get(f["path"])),
                }
                for f in json.loads(data)["files"]
            ]
            return self.send(200, {"files": answer})
        if verb == "commit":
            return self.take(repo, revision, commit, data, base)
        if verb == "resolve":
            return self.file(repo, commit, rest, base)
        return self.refuse(404, "", f"no route {method} {verb}")

    def file(self, repo: Any, commit: Any, name: str, base: str) -> None:
        if repo["gated"]:
            return self.refuse(403, "GatedRepo", "Access to this model is restricted")
        found = commit["files"].get(name)
        if found is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit["sha"])
        headers: dict[str, Any] = {"X_Repo_Commit": commit["sha"], "ETag": f'"{found["oid"]}"'}
        if found["lfs"]:
            headers |= {"X_Linked_Etag": f'"{found["sha256"]}"', "X_Linked_Size": found["size"]}
        if found.get("xet"):
            token = f"{base}/api/models/{repo['id']}/xet-read-token/{commit['sha']}"
            headers |= {"X_Xet_Hash": found["xet"], "Link": f'<{token}>; rel="xet-auth"'}
            return self.send(200 if self.command == "HEAD" else 501, raw=b"", **headers)
        data = found["data"]
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part and self.command == "GET":
            start, end = int(part[1]), int(part[2] or len(data) - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
            return self.send(206, raw=data[start : end + 1], **headers)
        if self.state.cut and self.command == "GET" and re.search(self.state.cut, name):
            self.state.cut = ""
            self.send_response(200)
            for key, text in {**headers, "Content_Length": len(data)}.items():
                self.send_header(key.replace("_", "-"), str(text))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        return self.send(200, raw=data, **headers)

    def batch(self, asked: Any, base: str) -> None:
        told = []
        for wanted in asked["objects"]:
            one = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.state.blobs:
                upload = {"href": f"{base}/lfs/{wanted['oid']}"}
                one["actions"] = {"upload": upload, "verify": {"href": f"{base}/lfs-verify"}}
            told.append(one)
        self.send(
            200,
            {"transfer": "basic", "objects": told},
            Content_Type="application/vnd.git-lfs+json",
        )

    def take(self, repo: Any, branch: str, head: Any, data: bytes, base: str) -> None:
        """A commit: onto a branch, or as a pull request."""
        lines = [json.loads(line) for line in data.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, head["sha"]):
            return self.refuse(412, "", "A commit has happened since. Please refresh.")
        files = dict(head["files"])
        hashes = xet_hashes(self.state.xet) if self.state.xet else {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = entry(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                sha = value["oid"]
                if sha in self.state.blobs:
                    files[value["path"]] = entry(self.state.blobs[sha], lfs=True)
                elif sha in hashes:
                    files[value["path"]] = {**pointer(sha, value["size"]), "xet": hashes[sha]}
                else:
                    return self.refuse(400, "", f"LFS object {sha} was never uploaded")
        told: dict[str, Any] = {}
        if self.query.get("create_pr", ["0"])[0] in ("1", "true", "True"):
            repo["pulls"] += 1
            branch = f"refs/pr/{repo['pulls']}"
            repo["refs"][branch] = head["sha"]
            told["pullRequestUrl"] = f"{base}/{repo['id']}/discussions/{repo['pulls']}"
        sha = self.state.commit(repo, branch, header["summary"], files)
        self.send(200, {"commitOid": sha, "commitUrl": f"{base}/{repo['id']}/commit/{sha}", **told})

    def collection(self, path: str, asked: Any) -> None:
        held = self.state.collections
        slug = path.removeprefix("/api/collections").strip("/").removesuffix("/items")
        if not slug:
            slug = f"{asked['namespace']}/{asked['title'].lower().replace(' ', '-')}-0"
            new = {"slug": slug, "title": asked["title"], "items": [], "upvotes": 0, "theme": "a"}
            new |= {"owner": {"name": asked["namespace"]}, "position": 0, "private": False}
            new |= {"lastUpdated": "2026-01-02T03:04:05.000Z", "description": ""}
            known = slug in held
            return self.send(409 if known else 200, held.setdefault(slug, new))
        if path.endswith("/items"):
            item = asked["item"]
            if item["id"] in [one["id"] for one in held[slug]["items"]]:
                return self.refuse(409, "", "is in the collection already")
            held[slug]["items"].append({**item, "_id": "0", "position": 0})
        return self.send(200, held[slug])

    def models(self) -> None:
        rows, query = [], self.query
        for repo in self.state.repos.values():
            told = about(repo, self.state.resolve(repo, "main"), "full" in query)
            if (
                (not repo["private"] or self.signed)
                and set(query.get("filter", [])) <= set(told["tags"])
                and query.get("search", [""])[0].lower() in repo["id"].lower()
            ):
                rows.append(told)
        self.send(200, rows[: int(query.get("limit", ["1000"])[0])])


def _oid(found: Any) -> Any:
    return found and (found["sha256"] if found["lfs"] else found["oid"])


class Server:
    """A Hub in another process, as a test sees it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def do(self, verb: str, **words: Any) -> Any:
        data = json.dumps(words).encode()
        with urllib.request.urlopen(f"{self.url}/_do/{verb}", data) as answer:
            return json.loads(answer.read())

    def put(self, repo: str, files: dict[str, bytes], **more: Any) -> str:
        coded = {name: base64.b64encode(data).decode() for name, data in files.items()}
        return str(self.do("put", repo=repo, files=coded, **more))

    def log(self) -> list[str]:
        """Every request since the last time that this was asked."""
        lines = self.do("log")
        self.do("set", log=[])
        return [line for line in lines if "agent-harnesses" not in line]


@contextmanager
def started(mode: str = "lfs", xet: str = "", user: str = "alice") -> Iterator[Server]:
    """A Hub that runs as long as the block; `user` is whom TOKEN belongs to."""
    command = [sys.executable, __file__, mode, xet, user]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Server(process.stdout.readline().strip())
        finally:
            process.terminate()


if __name__ == "__main__":
    Handler.state = State(*sys.argv[1:])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
