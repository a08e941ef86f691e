"""A double of the Hugging Face Hub on this machine: it takes what `huggingface_hub` 2.x pushes, and gives it back.

It is a double, not the Hub. It was written from what the client sends and expects, and agrees with the Hub no further.

What it speaks, for model repositories:

- `POST /api/repos/create`, `GET /api/whoami-v2`, `POST /api/validate-yaml` (it checks that the YAML block of a card
  is a mapping; the Hub checks much more);
- `POST /api/models/ID/preupload/REV`, and `POST /api/models/ID/commit/REV` with NDJSON: the header, inline files,
  files that were uploaded before, deleted files;
- `POST /ID.git/info/lfs/objects/batch` and `PUT` to the address that it names, checked by its SHA-256;
- for downloads `GET /api/models/ID[/revision/REV]`, `GET /api/models/ID/tree/REV`, and `HEAD` and `GET` of
  `/ID/resolve/REV/PATH`.

What it does not: Xet storage (set `HF_HUB_DISABLE_XET=1` where `large_files` is on), multipart uploads, pull
requests, branches besides `main`, datasets and Spaces, redirects to other hosts, paging, rate limits.

```python
with HubDouble() as hub:
    push_run(folder, "me/tiny", token=hub.token, endpoint=hub.url)
    assert hub.repos["me/tiny"].files["README.md"].startswith(b"---")
```
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import yaml

BINARY = (".safetensors", ".bin", ".png", ".model")


@dataclass
class Commit:
    """One commit: what its first line says, and all files as they are after it."""

    oid: str
    summary: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A model repository: its commits, oldest first. It is born with a `.gitattributes`, as on the Hub."""

    visibility: str = "public"
    commits: list[Commit] = field(
        default_factory=lambda: [Commit("0" * 40, "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})]
    )

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """What somebody who clones it finds, without `.gitattributes`."""
        return {name: data for name, data in self.head.files.items() if name != ".gitattributes"}

    def at(self, revision: str) -> Commit | None:
        """The commit of `main` or of a hash."""
        return self.head if revision == "main" else next((c for c in self.commits if c.oid == revision), None)


class HubDouble:
    """The server, in a thread of its own, for the time of a `with` block.

    Args:
        large_files: Take binary files the way the Hub takes large ones, by LFS, instead of inside the commit.
        refuse: Status codes to answer with instead of doing the work, by stage: `create`, `preupload`, `batch`,
            `upload`, `commit`. A message goes with it.

    Attributes:
        url, token, user: Where it is, the one token that may write, and whose it is.
        repos: The repositories by id.
        requests: Method and path of each request, in order.
    """

    token = "hf_token_of_the_double"
    user = "me"

    def __init__(self, large_files: bool = False, refuse: dict[str, int] | None = None) -> None:
        self.large_files = large_files
        self.refuse = refuse or {}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # what LFS has been given, by SHA-256
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "HubDouble":
        # The tests run offline, so that none of them reaches the Hub; the double is on this machine.
        self.offline = huggingface_hub.constants.HF_HUB_OFFLINE
        huggingface_hub.constants.HF_HUB_OFFLINE = False
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        huggingface_hub.constants.HF_HUB_OFFLINE = self.offline
        self.server.shutdown()
        self.server.server_close()

    def is_large(self, name: str) -> bool:
        """Whether the client is asked to upload a file of that name by LFS."""
        return self.large_files and Path(name).suffix in BINARY


class _Refused(Exception):
    """An answer with an error code. `more` goes into its body."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        commit: str | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.more = more or {}
        self.headers = {"X-Error-Message": message}
        if code is not None:
            self.headers["X-Error-Code"] = code
        if commit is not None:
            self.headers["X-Repo-Commit"] = commit


class _Handler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for an acknowledgement of its header

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        body = self._body()  # read in any case: what is left in the socket would be taken for the next request
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        headers: dict[str, str] = {"Content-Type": "application/json"}
        status = 200
        try:
            with self.hub.lock:
                answer = self._route(path, body, headers)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        except _Refused as refusal:
            status, data = refusal.status, json.dumps({"error": str(refusal), **refusal.more}).encode()
            headers |= refusal.headers
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    # ---- routes

    def _route(self, path: str, body: bytes, headers: dict[str, str]) -> Any:
        parts = path.strip("/").split("/")
        if self.command == "PUT" and parts[0] == "objects":
            return self._upload(parts[1], body)
        if self.command in ("GET", "HEAD") and parts[2:3] == ["resolve"]:
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), headers)
        if self.command == "POST" and path.endswith(".git/info/lfs/objects/batch"):
            return self._batch("/".join(parts[:2]).removesuffix(".git"), json.loads(body))
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return self._models("/".join(parts[2:4]), parts[4:], body)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return _validate(json.loads(body)["content"])
        if path == "/api/whoami-v2":
            self._may_write()
            return {"type": "user", "name": self.hub.user, "orgs": [], "auth": {"type": "access_token"}}
        raise _Refused(404, f"The double does not speak {self.command} {path}")

    def _models(self, repo_id: str, rest: list[str], body: bytes) -> Any:
        if self.command == "POST" and rest[0] == "preupload":
            return self._preupload(self._writable(repo_id, "preupload", rest[1]), json.loads(body))
        if self.command == "POST" and rest[0] == "commit":
            return self._commit(repo_id, self._writable(repo_id, "commit", rest[1]), body)
        if self.command == "GET" and rest[:1] in ([], ["revision"]):
            repo = self._readable(repo_id)
            commit = self._commit_at(repo, rest[1] if rest else "main")
            siblings = [{"rfilename": name} for name in sorted(commit.files)]
            private = repo.visibility == "private"
            return {"id": repo_id, "modelId": repo_id, "sha": commit.oid, "private": private, "siblings": siblings}
        if self.command == "GET" and rest[0] == "tree":
            return self._tree(self._commit_at(self._readable(repo_id), rest[1]), "/".join(rest[2:]))
        raise _Refused(404, f"The double does not speak {self.command} {'/'.join(rest)} of a model")

    # ---- writing

    def _create(self, asked: dict[str, Any]) -> dict[str, str]:
        self._may_write()
        self._refuse_if_told("create")
        owner = asked.get("organization") or self.hub.user
        if owner != self.hub.user:
            raise _Refused(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        repo_id = f"{owner}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.repos:
            # The client reads the address from this answer too.
            raise _Refused(409, "You already created this model repo", more=answer)
        self.hub.repos[repo_id] = Repo(visibility=asked.get("visibility") or "public")
        return answer

    def _preupload(self, repo: Repo, asked: dict[str, Any]) -> dict[str, Any]:
        def mode(name: str) -> dict[str, Any]:
            large = self.hub.is_large(name)
            there = repo.head.files.get(name)
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else _git_oid(there)
            return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

        return {"files": [mode(file["path"]) for file in asked["files"]]}

    def _batch(self, repo_id: str, asked: dict[str, Any]) -> dict[str, Any]:
        self._writable(repo_id, "batch")
        objects = []
        for one in asked["objects"]:
            answer: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.objects:  # one that is there already need not be sent again
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{one['oid']}"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def _upload(self, oid: str, body: bytes) -> dict[str, Any]:
        self._refuse_if_told("upload")
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, f"What was uploaded does not have the SHA-256 {oid}")
        self.hub.objects[oid] = body
        return {}

    def _commit(self, repo_id: str, repo: Repo, body: bytes) -> dict[str, Any]:
        files, summary = dict(repo.head.files), ""
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                summary = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"], validate=True)
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise _Refused(400, f"The double does not know {key!r} in a commit")
        oid = hashlib.sha1(body + repo.head.oid.encode()).hexdigest()
        repo.commits.append(Commit(oid, summary, files))
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"}

    # ---- reading

    def _tree(self, commit: Commit, under: str) -> list[dict[str, Any]]:
        names = [name for name in sorted(commit.files) if not under or name.startswith(under.rstrip("/") + "/")]
        tree = []
        for name in names:
            data = commit.files[name]
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _git_oid(data)}
            if self.hub.is_large(name):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            tree.append(entry)
        return tree

    def _resolve(self, repo_id: str, revision: str, name: str, headers: dict[str, str]) -> bytes:
        commit = self._commit_at(self._readable(repo_id), revision)
        if name not in commit.files:
            raise _Refused(404, "Entry not found", "EntryNotFound", commit.oid)
        data = commit.files[name]
        headers |= {
            "Content-Type": "application/octet-stream",
            "X-Repo-Commit": commit.oid,
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
        }
        return data

    # ---- who may what

    def _may_write(self) -> None:
        given = self.headers.get("Authorization", "")
        if not given:
            raise _Refused(401, "Invalid username or password.")
        if given != f"Bearer {self.hub.token}":
            raise _Refused(401, "Invalid credentials in Authorization header")

    def _writable(self, repo_id: str, stage: str, revision: str = "main") -> Repo:
        self._may_write()
        self._refuse_if_told(stage)
        repo = self._readable(repo_id)
        self._commit_at(repo, revision)
        return repo

    def _readable(self, repo_id: str) -> Repo:
        repo = self.hub.repos.get(repo_id)
        allowed = repo is not None and repo.visibility == "public"
        if repo is None or not (allowed or self.headers.get("Authorization") == f"Bearer {self.hub.token}"):
            raise _Refused(404 if self.headers.get("Authorization") else 401, "Repository not found", "RepoNotFound")
        return repo

    @staticmethod
    def _commit_at(repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision)
        if commit is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _refuse_if_told(self, stage: str) -> None:
        if stage in self.hub.refuse:
            raise _Refused(self.hub.refuse[stage], f"The double was told to refuse: {stage}")


def _validate(content: str) -> dict[str, Any]:
    _, _, rest = content.partition("---\n")
    try:
        block = yaml.safe_load(rest.partition("\n---")[0])
        problem = None if isinstance(block, dict) else "the metadata is not a mapping"
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
    if problem is not None:
        raise _Refused(400, "Invalid metadata", more={"errors": [{"message": problem}]})
    return {"errors": [], "warnings": []}


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
