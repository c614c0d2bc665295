"""As much of the hub's interface as its client needs to download one model from a folder; keeps what was asked for."""

import json
import threading
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REFS = ("main", "step20", "step100", "step3")
"""A branch and tags, all of which stand for the one commit."""


class Hub(ThreadingHTTPServer):
    """Serves `folder` as the model `name` at `commit`; `sent` are the names of files that were sent whole."""

    def __init__(self, folder: Path, name: str, commit: str) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.name, self.commit = folder, name, commit
        self.elements = 0
        """What the hub says of the number of weights."""
        self.sent: list[str] = []
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(whole=False)

    def do_GET(self) -> None:
        self._answer(whole=True)

    def _answer(self, whole: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {self.path}")
        resolve = f"/{self.server.name}/resolve/"
        if path.startswith(resolve):
            self._file(path.removeprefix(resolve).partition("/")[2], whole)
        elif path.startswith(f"/api/models/{self.server.name}/tree/"):
            files = [self._entry(file) for file in sorted(self.server.folder.iterdir())]
            self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"}, whole)
        elif path == f"/api/models/{self.server.name}/refs":
            names = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": self.server.commit} for name in REFS]
            refs = {"branches": names[:1], "tags": names[1:], "converts": []}
            self._send(200, json.dumps(refs).encode(), {"Content-Type": "application/json"}, whole)
        elif path.startswith(f"/api/models/{self.server.name}"):
            revision = path.partition("/revision/")[2]
            if revision not in ("", self.server.commit, *REFS):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, whole)
                return
            files = [
                {"rfilename": file.name, "size": file.stat().st_size} for file in sorted(self.server.folder.iterdir())
            ]
            info = {
                "id": self.server.name, "sha": self.server.commit, "siblings": files, "tags": [],
                "safetensors": {"parameters": {"F32": self.server.elements}, "total": self.server.elements},
            }  # fmt: skip
            self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, whole)
        else:
            code = "RepoNotFound" if path.startswith("/api/models/") else "EntryNotFound"
            self._send(404, b"{}", {"X-Error-Code": code}, whole)

    def _entry(self, file: Path) -> dict:
        return {
            "type": "file",
            "path": file.name,
            "size": file.stat().st_size,
            "oid": sha256(file.read_bytes()).hexdigest()[:40],
        }

    def _file(self, name: str, whole: bool) -> None:
        file = self.server.folder / name
        here = {"X-Repo-Commit": self.server.commit}
        if not file.is_file():
            self._send(404, b"", {**here, "X-Error-Code": "EntryNotFound"}, whole)
            return
        content = file.read_bytes()
        if whole:
            self.server.sent.append(name)
        self._send(200, content, {**here, "ETag": f'"{sha256(content).hexdigest()}"'}, whole)

    def _send(self, code: int, content: bytes, headers: dict[str, str], whole: bool) -> None:
        self.send_response(code)
        for header, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(header, value)
        self.end_headers()
        if whole:
            self.wfile.write(content)

    def log_message(self, *_args) -> None:
        pass


@contextmanager
def serving(folder: Path, name: str, commit: str):
    with Hub(folder, name, commit) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
