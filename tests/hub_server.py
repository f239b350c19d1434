"""A small Hub for tests: the endpoints that huggingface_hub, transformers and datasets use, over real HTTP.

Repositories, branches, commits, LFS objects, tokens, rights; every request is noted, one can be held up or cut off.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".parquet", ".wav")  # other files are sent with the commit itself
KINDS = {"models": "model", "datasets": "dataset"}


class Repository:
    """Branches that name commits; a commit is its files."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.branches = {"main": self.add_commit({}, "initial commit")}

    def add_commit(self, files: dict[str, bytes], message: str) -> str:
        content = [(name, hashlib.sha256(data).hexdigest()) for name, data in sorted(files.items())]
        name = hashlib.sha1(repr((len(self.commits), content)).encode()).hexdigest()
        self.commits[name] = files
        self.messages.append(message)
        return name

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Hub:
    """
    State of the server.

    Attributes:
        users: token -> name; who may write below that name alone.
        requests: (method, path) of all requests, in order.
        objects: LFS content by sha256.
        held: path part -> event; a request to such a path sets `reached`, waits for the event, and is lost.
        cut: path part -> bytes after which the next answer to such a path breaks off, once.
    """

    def __init__(self):
        self.users = {"hf_right": "ada", "hf_other": "bob"}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[tuple[str, str]] = []
        self.held: dict[str, threading.Event] = {}
        self.reached = threading.Event()
        self.cut: dict[str, int] = {}
        self.address = ""

    def asked(self, method: str, part: str) -> int:
        """How many requests of a method had `part` in their path."""
        return sum(name == method and part in path for name, path in self.requests)

    def files(self, name: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[kind, name]
        return repository.commits[repository.resolve(revision)]


@contextmanager
def run_hub() -> Iterator[Hub]:
    """A server in a thread of this process."""
    hub = Hub()
    handler = type("Handler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        for event in hub.held.values():
            event.set()
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request. Errors carry the codes by which huggingface_hub tells them apart."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        parts = urlsplit(self.path)
        self.where, self.query = unquote(parts.path), parse_qs(parts.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.read_chunks()
        self.user = self.hub.users.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        self.hub.requests.append((self.command, self.where))
        for part, event in list(self.hub.held.items()):
            if part in self.where:
                self.hub.reached.set()
                event.wait(60)
                self.close_connection = True
                return None
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, self.where)
            if match:
                return getattr(self, method)(**match.groupdict())
        self.fail(404, f"no endpoint {self.command} {self.where}")

    def read_chunks(self) -> bytes:
        """A body in chunks, as huggingface_hub streams a commit."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, content: bytes, headers: dict[str, str], status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reply(self, content: object, status: int = 200) -> None:
        self.send(json.dumps(content).encode(), {"Content-Type": "application/json"}, status)

    def fail(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        self.send(json.dumps({"error": message}).encode(), headers | ({"X-Error-Code": code} if code else {}), status)

    def repository(self, kind: str, name: str, writing: bool = False) -> Repository | None:
        """The repository, or None after an error was sent."""
        found = self.hub.repositories.get((KINDS[kind], name))
        owner = name.partition("/")[0]
        if found is None or (found.private and self.user != owner):
            self.fail(404 if self.user else 401, "Repository not found", "RepoNotFound")
        elif writing and self.user != owner:
            self.fail(403, "You don't have the right to write here")
        else:
            return found
        return None

    def commit_of(self, kind: str, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.repository(kind, name)
        if repository is None:
            return None
        commit = repository.resolve(revision)
        if commit is None:
            self.fail(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return repository, commit

    # Endpoints

    def whoami(self) -> None:
        self.reply({"name": self.user, "type": "user"}) if self.user else self.fail(401, "Invalid user token.")

    def create(self) -> None:
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or self.user
        key = wanted.get("type") or "model", f"{owner}/{wanted['name']}"
        address = f"{self.hub.address}/{'datasets/' * (key[0] == 'dataset')}{key[1]}"
        if not self.user:
            return self.fail(401, "Invalid user token.")
        if owner != self.user:
            return self.fail(403, f"You don't have the rights to create a model under the namespace {owner}")
        if key in self.hub.repositories:
            return self.reply({"error": "You already created this repo", "url": address}, 409)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repositories[key] = Repository(private)
        self.reply({"url": address, "id": key[1]})

    def branch(self, kind: str, name: str, branch: str) -> None:
        repository = self.repository(kind, name, writing=True)
        if repository is not None:
            if branch in repository.branches:
                return self.fail(409, "Reference already exists")
            repository.branches[branch] = repository.branches["main"]
            self.reply({})

    def refs(self, kind: str, name: str) -> None:
        repository = self.repository(kind, name)
        if repository is not None:
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
                for branch, commit in repository.branches.items()
            ]
            self.reply({"branches": branches, "converts": [], "tags": []})

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        found = self.commit_of(kind, name, revision or "main")
        if found is not None:
            repository, commit = found
            siblings = [{"rfilename": path} for path in sorted(repository.commits[commit])]
            content = {"id": name, "sha": commit, "private": repository.private, "siblings": siblings, "tags": []}
            self.reply(content | {"gated": False, "disabled": False, "downloads": 0, "likes": 0})

    def entry(self, path: str, content: bytes) -> dict:
        digest = hashlib.sha256(content).hexdigest()
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        lfs = {"lfs": {"oid": digest, "size": len(content), "pointerSize": 130}}
        return entry | (lfs if path.endswith(LFS) else {})

    def folder(self, path: str) -> dict:
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}

    def tree(self, kind: str, name: str, revision: str, path: str | None = None) -> None:
        found = self.commit_of(kind, name, revision)
        if found is None:
            return
        files = found[0].commits[found[1]]
        start = f"{path.strip('/')}/" if path else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        inside = {name: content for name, content in files.items() if name.startswith(start)}
        if start and not inside:
            return self.fail(404, f"{path} does not exist", "EntryNotFound")
        folders = {start + name[len(start) :].partition("/")[0] for name in inside if "/" in name[len(start) :]}
        listed = [self.entry(n, c) for n, c in sorted(inside.items()) if recursive or "/" not in n[len(start) :]]
        self.reply([self.folder(name) for name in sorted(folders)] + listed)

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        found = self.commit_of(kind, name, revision)
        if found is not None:
            files = found[0].commits[found[1]]
            paths = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
            known = [self.entry(path, files[path]) for path in paths if path in files]
            folders = {path for path in paths if any(name.startswith(f"{path}/") for name in files)}
            self.reply(known + [self.folder(path) for path in sorted(folders)])

    def preupload(self, kind: str, name: str, revision: str) -> None:
        if self.repository(kind, name, writing=True) is not None:
            files = json.loads(self.body)["files"]
            modes = {True: "lfs", False: "regular"}
            listed = [{"path": f["path"], "uploadMode": modes[f["path"].endswith(LFS)]} for f in files]
            self.reply({"files": [item | {"shouldIgnore": False} for item in listed]})

    def lfs_batch(self, name: str, kind: str = "models") -> None:
        if self.repository(kind, name, writing=True) is not None:
            objects = []
            for item in json.loads(self.body)["objects"]:
                upload = {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}"}}
                objects.append(item | ({} if item["oid"] in self.hub.objects else {"actions": upload}))
            self.reply({"transfer": "basic", "objects": objects})

    def lfs_dataset_batch(self, name: str) -> None:
        self.lfs_batch(name, "datasets")

    def lfs_object(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self.reply({})

    def commit(self, kind: str, name: str, revision: str) -> None:
        repository = self.repository(kind, name, writing=True)
        if repository is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        files = dict(repository.commits[repository.branches[revision]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        commit = repository.add_commit(files, lines[0]["value"]["summary"])
        repository.branches[revision] = commit
        address = f"{self.hub.address}/{'datasets/' * (kind == 'datasets')}{name}/commit/{commit}"
        self.reply({"success": True, "commitOid": commit, "commitUrl": address, "hookOutput": ""})

    def file(self, name: str, revision: str, path: str, kind: str = "models") -> None:
        found = self.commit_of(kind, name, revision)
        if found is None:
            return
        repository, commit = found
        content = repository.commits[commit].get(path)
        if content is None:
            return self.fail(404, f"{path} does not exist", "EntryNotFound")
        entry = self.entry(path, content)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and self.command == "GET":
            start = int(wanted[1])
            self.hub.ranges.append((path, wanted[0]))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.send(content[start:], headers, 206)
        broken = next((part for part in self.hub.cut if part in path), None) if self.command == "GET" else None
        if broken is None:
            return self.send(content, headers)
        self.send(content[: self.hub.cut.pop(broken)], headers, length=len(content))
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def dataset_file(self, name: str, revision: str, path: str) -> None:
        self.file(name, revision, path, "datasets")

    def validate(self) -> None:
        self.reply({"errors": [], "warnings": []})


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>models|datasets)/{NAME}"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    (r"/api/whoami-v2", "whoami"),
    (r"/api/repos/create", "create"),
    (r"/api/validate-yaml", "validate"),
    (rf"{API}/branch/(?P<branch>.+)", "branch"),
    (rf"{API}/refs", "refs"),
    (rf"{API}/revision/{REVISION}", "info"),
    (rf"{API}/tree/{REVISION}(?P<path>/.*)?", "tree"),
    (rf"{API}/paths-info/{REVISION}", "paths_info"),
    (rf"{API}/preupload/{REVISION}", "preupload"),
    (rf"{API}/commit/{REVISION}", "commit"),
    (API, "info"),
    (rf"/datasets/{NAME}\.git/info/lfs/objects/batch", "lfs_dataset_batch"),
    (rf"/{NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"/lfs/(?P<oid>\w+)", "lfs_object"),
    (rf"/datasets/{NAME}/resolve/{REVISION}/(?P<path>.+)", "dataset_file"),
    (rf"/{NAME}/resolve/{REVISION}/(?P<path>.+)", "file"),
]
