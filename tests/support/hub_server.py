"""A Hugging Face Hub on loopback: a real HTTP server that speaks as much of the protocol as the tests need.

Files are served as the Hub serves them: HEAD answers with commit, digest and size; large files (by suffix)
are redirected to a content-addressed store, as to the Hub's CDN; errors carry the Hub's own headers. Uploads
go through preupload, LFS batch, PUT and commit. Every request is kept, for tests to count and to look into.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml  # type: ignore[import-untyped]  # huggingface_hub's own requirement

TEXT_FIELDS = ("license", "license_name", "library_name", "pipeline_tag", "base_model", "base_model_relation")
LARGE_SUFFIXES = (".safetensors", ".bin", ".pt")


@dataclass
class Request:
    """One request as it arrived."""

    method: str
    path: str
    headers: Message  # get() ignores case


@dataclass
class Repo:
    """Commits, oldest first; the last is the head of main."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    @property
    def head(self) -> str:
        """The newest commit."""
        return list(self.commits)[-1]

    def resolve(self, revision: str) -> str | None:
        """The full commit of a branch or of a full or short hash, as the Hub resolves it."""
        if revision == "main":
            return self.head
        matches = [commit for commit in self.commits if len(revision) >= 7 and commit.startswith(revision)]
        return matches[0] if len(matches) == 1 else None


def etag(name: str, content: bytes) -> str:
    """sha256 of a large file, git blob sha1 of a small one."""
    if name.endswith(LARGE_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class LoopbackHub:
    """The server, its repositories, and the faults it is told to have.

    Attributes:
        repos: By "owner/repo".
        requests: Everything that was asked, in order.
        bodies: Bytes to send for a sha256 instead of the right ones.
        stated_sizes: Size to state in HEAD for a sha256 instead of the right one.
        broken_after: Bytes of a sha256 after which the connection is cut, once.
        status: HTTP status to answer everything with, None to work.
        delay: Seconds before a large file is sent.
        trickle: Seconds between the single bytes that large files are sent as, None to send them at once.
        token: What a private or gated repository wants to see.
    """

    token = "hf_loopback"

    def __init__(self) -> None:
        self.reset()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        # The store has another name than the Hub, as the CDN has: the client sends no token there.
        self.store_url = self.url.replace("127.0.0.1", "localhost")

    def reset(self) -> None:
        """Forgets repositories, requests and faults."""
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.store: dict[str, bytes] = {}
        self.bodies: dict[str, bytes] = {}
        self.stated_sizes: dict[str, int] = {}
        self.broken_after: dict[str, int] = {}
        self.status: int | None = None
        self.delay = 0.0
        self.trickle: float | None = None

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repo_id: str, files: Mapping[str, bytes], prefix: str = "", **flags: bool) -> str:
        """Adds a commit with these files to the earlier ones; returns its hash, which begins with prefix."""
        repo = self.repos.setdefault(repo_id, Repo())
        for name, value in flags.items():
            setattr(repo, name, value)
        tree = {**(repo.commits[repo.head] if repo.commits else {}), **files}
        parts = [
            repo_id.encode(),
            str(len(repo.commits)).encode(),
            *(etag(n, c).encode() for n, c in tree.items()),
        ]
        commit = prefix + hashlib.sha1(b"\n".join(parts)).hexdigest()[len(prefix) :]
        repo.commits[commit] = tree
        self.store |= {etag(name, content): content for name, content in files.items()}
        return commit


class _Handler(BaseHTTPRequestHandler):
    server_hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Stays quiet."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub = self.server_hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(Request(self.command, path, self.headers))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if hub.status is not None:
            return self._error(hub.status, "", "out of order")
        routes = (
            (r"/cdn/(?P<digest>\w+)", self._send_stored),
            (r"/upload/(?P<digest>\w+)", self._receive),
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate_card),
            (r"/api/models/(?P<repo_id>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", self._preupload),
            (r"/api/models/(?P<repo_id>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", self._commit),
            (r"/api/models/(?P<repo_id>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", self._model_info),
            (r"/(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", self._lfs_batch),
            (r"/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", self._resolve),
        )
        for pattern, route in routes:
            if match := re.fullmatch(pattern, path):
                return route(body, **match.groupdict())
        return self._error(404, "", f"no route {self.command} {path}")

    def _repo(self, repo_id: str) -> Repo | None:
        """The repository if it exists and the caller may see it; answers with the error otherwise."""
        hub = self.server_hub
        allowed = self.headers.get("Authorization") == f"Bearer {hub.token}"
        repo = hub.repos.get(repo_id)
        if repo is None or (repo.private and not allowed):
            # The Hub does not tell strangers whether a repository exists.
            self._error(404 if allowed else 401, "RepoNotFound", "Repository not found")
            return None
        if repo.gated and not allowed:
            self._error(403, "GatedRepo", f"Access to model {repo_id} is restricted")
            return None
        return repo

    def _resolve(self, body: bytes, repo_id: str, revision: str, name: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return None
        commit = repo.resolve(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if name not in repo.commits[commit]:
            return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        content = repo.commits[commit][name]
        digest = etag(name, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
        if not name.endswith(LARGE_SUFFIXES):
            return self._answer(200, content, headers)
        headers |= {
            "X-Linked-ETag": f'"{digest}"',
            "X-Linked-Size": str(self.server_hub.stated_sizes.get(digest, len(content))),
            "Location": f"{self.server_hub.store_url}/cdn/{digest}",
        }
        return self._answer(302, b"", headers)

    def _send_stored(self, body: bytes, digest: str) -> None:
        hub = self.server_hub
        content = hub.bodies.get(digest, hub.store[digest])
        time.sleep(hub.delay)
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        rest = content[start:]
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        if (limit := hub.broken_after.pop(digest, None)) is not None:
            self._head(206 if start else 200, len(rest), headers)
            self.wfile.write(rest[:limit])
            self.close_connection = True
            return None
        if hub.trickle is not None:
            self._head(206 if start else 200, len(rest), headers)
            with contextlib.suppress(ConnectionError):  # the client has had enough
                for byte in rest:
                    self.wfile.write(bytes([byte]))
                    time.sleep(hub.trickle)
            self.close_connection = True
            return None
        return self._answer(206 if start else 200, rest, headers)

    def _model_info(self, body: bytes, repo_id: str, revision: str | None, **_: Any) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return None
        commit = repo.resolve(revision or "main")
        if commit is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files: list[dict[str, Any]] = []
        for name, content in repo.commits[commit].items():
            file: dict[str, Any] = {"rfilename": name}
            if parse_qs(urlsplit(self.path).query).get("blobs"):
                file |= {"size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
                if name.endswith(LARGE_SUFFIXES):
                    file["lfs"] = {"sha256": etag(name, content), "size": len(content), "pointerSize": 134}
            files.append(file)
        return self._json(
            {
                "id": repo_id,
                "sha": commit,
                "private": repo.private,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": files,
            }
        )

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        if not self._may_write():
            return None
        if repo_id in self.server_hub.repos:
            return self._json({"url": f"{self.server_hub.url}/{repo_id}", "error": "exists"}, 409)
        self.server_hub.repos[repo_id] = Repo(
            private="private" in (asked.get("visibility"), asked.get("private") and "private")
        )
        self.server_hub.commit(repo_id, {".gitattributes": b""})
        return self._json({"url": f"{self.server_hub.url}/{repo_id}", "id": repo_id})

    def _validate_card(self, body: bytes) -> None:
        """As far as the tests need it: front matter that is no mapping, or has a wrong kind of value, is refused."""
        parts = json.loads(body)["content"].split("---\n")
        values = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
        wrong = [f'"{key}" must be a string' for key in TEXT_FIELDS if not isinstance((values or {}).get(key, ""), str)]
        if not isinstance(values, dict):
            return self._json({"warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        return self._json({"errors": [{"message": text} for text in wrong], "warnings": []}, 400 if wrong else 200)

    def _preupload(self, body: bytes, repo_id: str, revision: str) -> None:
        if self._may_write() and self._repo(repo_id):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})

    def _lfs_batch(self, body: bytes, repo_id: str) -> None:
        if self._may_write() and self._repo(repo_id):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.server_hub.url}/upload/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            answer = {"transfer": "basic", "objects": objects}
            self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/vnd.git-lfs+json"})

    def _receive(self, body: bytes, digest: str) -> None:
        if hashlib.sha256(body).hexdigest() != digest:
            return self._error(400, "", "the content is not what was announced")
        self.server_hub.store[digest] = body
        return self._answer(200, b"", {})

    def _commit(self, body: bytes, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id) if self._may_write() else None
        if repo is None:
            return None
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server_hub.store[value["oid"]]
        commit = self.server_hub.commit(repo_id, files)
        url = f"{self.server_hub.url}/{repo_id}/commit/{commit}"
        return self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.server_hub.token}":
            return True
        self._error(401, "", "Invalid credentials in Authorization header")
        return False

    def _error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        named = {"X-Error-Code": code} if code else {}
        self._answer(status, message.encode(), {**named, "X-Error-Message": message, **(headers or {})})

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self._head(status, len(content), headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
