"""A Hub on this machine: as much of its HTTP interface as huggingface_hub and Transformers use here."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopbackTokenThatMustNotBeWrittenAnywhere"
OWNER = "someone"
FOR_ALL = ("/upload/", "/api/validate-yaml")


class LoopbackHub:
    """Repositories in memory.

    Attributes:
        repos: name -> its commits, each all the files at that time.
        private: names of the private ones.
        read_only: names of those that may not be written to.
        fail: number of commits that answer 503 before one succeeds.
        held: if set, commits wait for it; ``waiting`` is set as soon as one does.
        log: method and path of every request.
    """

    def __init__(self) -> None:
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.messages: dict[str, list[str]] = {}
        self.private: set[str] = set()
        self.read_only: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.fail = 0
        self.held: threading.Event | None = None
        self.waiting = threading.Event()
        self.log: list[str] = []
        self.url = ""

    def files(self, name: str) -> dict[str, bytes]:
        """What a repository holds now."""
        return self.repos[name][-1]

    # ---- answers: (status, JSON or bytes, headers)

    def create(self, body: dict) -> tuple:
        name = f"{body.get('organization') or OWNER}/{body['name']}"
        if not name.startswith(f"{OWNER}/"):
            return 403, {"error": f"You don't have the rights to create a model under the namespace {name}"}, {}
        status = 409 if name in self.repos else 200
        if status == 200:
            self.repos[name], self.messages[name] = [{}], []
            if body.get("visibility") == "private":
                self.private.add(name)
        return status, {"url": f"{self.url}/{name}", "name": name}, {}

    def lfs_batch(self, name: str, body: dict) -> tuple:
        objects = []
        for entry in body["objects"]:
            href = f"{self.url}/upload/{entry['oid']}"
            known = entry["oid"] in self.objects
            objects.append(entry if known else {**entry, "actions": {"upload": {"href": href}}})
        return 200, {"transfer": "basic", "objects": objects}, {}

    def commit(self, name: str, lines: list[dict]) -> tuple:
        if self.held is not None:
            self.waiting.set()
            assert self.held.wait(60)
        if self.fail:
            self.fail -= 1
            return 503, {"error": "busy"}, {}
        files = dict(self.files(name))
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages[name].append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        self.repos[name].append(files)
        oid = self.revision(name)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid, "hookOutput": ""}, {}

    def revision(self, name: str) -> str:
        return f"{len(self.repos[name]):040x}"

    def tree(self, name: str) -> tuple:
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in self.files(name).items()
        ]
        return 200, entries, {}

    def resolve(self, name: str, path: str) -> tuple:
        files = self.files(name)
        if path not in files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        return 200, files[path], {"ETag": etag, "X-Repo-Commit": self.revision(name), "Accept-Ranges": "bytes"}

    def answer(self, method: str, path: str, body: bytes) -> tuple:
        """One request of somebody who is logged in."""

        def parsed() -> dict:
            return json.loads(body)

        if path == "/api/repos/create":
            return self.create(parsed())
        if path == "/api/validate-yaml":
            errors = (
                [{"message": '"license" must be one of [...]'}] if "license: nonsense" in parsed()["content"] else []
            )
            return 400 if errors else 200, {"errors": errors, "warnings": []}, {}
        if match := re.fullmatch(r"/upload/(\w+)", path):
            assert hashlib.sha256(body).hexdigest() == match[1]
            self.objects[match[1]] = body
            return 200, b"", {}
        if match := re.fullmatch(r"/(.+?)\.git/info/lfs/objects/batch", path):
            return self.lfs_batch(match[1], parsed())
        match = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)(?:/(auth-check|preupload|commit|revision|tree)(?:/.*)?)?", path
        )
        match = match or re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/[^/]+/(.+)", path)
        if not match or match[1] not in self.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        name, action = match[1], match[2]
        if action == "auth-check":
            refused = name in self.read_only and path.endswith("/write")
            return (403, {"error": "Forbidden: you may not write here"}, {}) if refused else (200, {}, {})
        if action == "preupload":
            modes = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith((".safetensors", ".png", ".jpg")) else "regular",
                    "shouldIgnore": False,
                }
                for entry in parsed()["files"]
            ]
            return 200, {"files": modes}, {}
        if action == "commit":
            return self.commit(name, [json.loads(line) for line in body.splitlines()])
        if action == "tree":
            return self.tree(name)
        if action == "resolve":
            return self.resolve(name, match[3])
        info = {"id": name, "modelId": name, "sha": self.revision(name), "private": name in self.private, "tags": []}
        return 200, {**info, "siblings": [{"rfilename": path} for path in self.files(name)]}, {}


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """Serve a Hub on a free port of this machine."""
    hub = LoopbackHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self.read_body()
            hub.log.append(f"{self.command} {path}")
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}" or path.startswith(FOR_ALL)
            refused = 401, {"error": "Invalid credentials"}, {}
            status, content, headers = hub.answer(self.command, path, body) if known else refused
            payload = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(payload)

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
