"""A small stand-in for the hub on the loopback interface: enough of its HTTP interface for the real clients.

The clients read HF_ENDPOINT when they are imported, so they run in a process of their own:

    with HubServer({("dataset", "org/name"): folder, ("model", "org/tiny"): other}) as hub:
        subprocess.run([sys.executable, "-c", code], env=hub.environment(tmp_path / "hf_home"), check=True)
"""

import base64
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

Repo = tuple[str, str]  # "dataset" or "model", and org/name


class HubServer:
    """Serves folders as repositories with one branch, `main`, whose commit follows from the folder's content.

    Args:
        repos: the folder of each repository.
        gated: repositories whose files are refused with 403, as the hub does for terms not accepted.
        writable: where new repositories are made, for those with a token; None makes none.
        refuse_uploads: answer every commit with 403.
    """

    def __init__(
        self,
        repos: Mapping[Repo, Path],
        gated: Collection[Repo] = (),
        writable: Path | None = None,
        refuse_uploads: bool = False,
    ) -> None:
        self.repos = dict(repos)
        self.writable = writable
        self.refuse_uploads = refuse_uploads
        self.private: set[Repo] = set()
        self.gated = set(gated)
        self.requests: list[str] = []  # "METHOD path", in order of arrival
        server = self

        class Handler(_Handler):
            hub = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "HubServer":
        self._thread = Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def commit(self, repo: Repo) -> str:
        """The commit that `main` stands for: a digest of the folder's files."""
        digest = hashlib.sha1()
        for path, content in sorted(self.files(repo).items()):
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    def files(self, repo: Repo) -> dict[str, bytes]:
        """The content of each file by its path in the repository."""
        folder = self.repos[repo]
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables for a process whose clients shall talk to this server, with a cache of their own at `home`."""
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("HF_") and "PROXY" not in k.upper()}
        own = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        return {**kept, **own, **more}


class _Request(NamedTuple):
    repo: Repo
    action: str  # "info", "tree", "paths-info", "resolve", "preupload" or "commit"
    revision: str
    path: str


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        if path in ("/api/whoami-v2", "/api/repos/create", "/api/validate-yaml"):
            return self._account(path)
        request = _parse(path)
        if request is None:
            return self._send(404, b"not found")
        if request.repo not in self.hub.repos:
            return self._fail(404, "RepoNotFound", "Repository not found")
        if request.revision not in ("main", self.hub.commit(request.repo)):
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {request.revision}")
        if request.action == "resolve":
            return self._file(request)
        if request.action in ("preupload", "commit"):
            return self._upload(request)
        return self._api(request)

    def _account(self, path: str) -> None:
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if not self.headers.get("Authorization"):
            return self._fail(401, "Unauthorized", "Invalid username or password.")
        if path == "/api/whoami-v2":
            return self._json({"type": "user", "name": "org", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        asked = json.loads(self._body)
        name = asked["name"] if "/" in asked["name"] else f"{asked.get('organization') or 'org'}/{asked['name']}"
        assert self.hub.writable is not None
        self.hub.repos["model", name] = self.hub.writable / name
        self.hub.repos["model", name].mkdir(parents=True)
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(("model", name))
        return self._json({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def _upload(self, request: _Request) -> None:
        """Every file travels within the commit itself; the hub would take large ones by another way."""
        if request.action == "preupload":
            files = [
                {**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(self._body)["files"]
            ]
            return self._json({"files": files})
        if self.hub.refuse_uploads:
            return self._fail(403, "Forbidden", "You have no rights here")
        for line in self._body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                target = self.hub.repos[request.repo] / entry["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(entry["value"]["content"]))
        commit = self.hub.commit(request.repo)
        url = f"{self.hub.endpoint}/{request.repo[1]}/commit/{commit}"
        return self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def _api(self, request: _Request) -> None:
        files, (kind, name) = self.hub.files(request.repo), request.repo
        if request.action == "info":
            return self._json(
                {
                    "_id": name,
                    "id": name,
                    "sha": self.hub.commit(request.repo),
                    "private": False,
                    "gated": "auto" if request.repo in self.hub.gated else False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                    **({"modelId": name} if kind == "model" else {}),
                }
            )
        entries = {path: _entry("file", path, content) for path, content in files.items()}
        for path in files:
            for parent in list(Path(path).parents)[:-1]:
                entries[parent.as_posix()] = _entry("directory", parent.as_posix(), b"")
        if request.action == "paths-info":
            asked = json.loads(self._body)["paths"] if self._body.startswith(b"{") else []
            return self._json([entries[path] for path in asked if path in entries])
        if request.path and request.path not in entries:
            return self._fail(404, "EntryNotFound", "Entry not found")
        recursive = "recursive=true" in self.path.lower()
        inside = [path for path in sorted(entries) if path.startswith(f"{request.path}/" if request.path else "")]
        depth = request.path.count("/") + 1 if request.path else 0
        return self._json([entries[path] for path in inside if recursive or path.count("/") == depth])

    def _file(self, request: _Request) -> None:
        if request.repo in self.hub.gated:
            return self._fail(403, "GatedRepo", f"Access to {request.repo[1]} is restricted")
        content = self.hub.files(request.repo).get(request.path)
        if content is None:
            return self._fail(404, "EntryNotFound", "Entry not found")
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self._send(200, content, {"ETag": etag, "X-Repo-Commit": self.hub.commit(request.repo)})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(kind: str, path: str, content: bytes) -> dict[str, Any]:
    return {"type": kind, "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}


def _parse(path: str) -> _Request | None:
    """`/api/datasets/org/name[/ACTION/REV/path]` and `/[datasets/]org/name/resolve/REV/path`."""
    parts = path.strip("/").split("/")
    api = parts[0] == "api"
    parts = parts[1:] if api else parts
    kind = {"datasets": "dataset", "models": "model"}.get(parts[0] if parts else "")
    if kind is None:
        if api:
            return None
        kind = "model"
    else:
        parts = parts[1:]
    if len(parts) < 2:
        return None
    repo, rest = (kind, "/".join(parts[:2])), parts[2:]
    if api and not rest:
        return _Request(repo, "info", "main", "")
    if len(rest) < 2:
        return None
    actions = {"revision": "info", "tree": "tree", "paths-info": "paths-info", "resolve": "resolve"}
    action = {**actions, "preupload": "preupload", "commit": "commit"}.get(rest[0])
    return _Request(repo, action, rest[1], "/".join(rest[2:])) if action else None
