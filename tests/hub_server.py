"""A hub of models on loopback, with the endpoints of the real one; long files come from another server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import quote

from file_server import File, FileServer, serve_files

LONG = (".onnx", ".onnx_data", ".safetensors")


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """The server of the hub, and the server to which it redirects for files in LFS."""

    own: FileServer
    store: FileServer
    page: int = 1000
    """Files a page of a listing."""
    commits: dict[str, str] = field(default_factory=dict)
    """The newest commit of each repository."""

    @property
    def url(self) -> str:
        return self.own.url

    def publish(self, repo: str, files: Mapping[str, bytes], **info: object) -> str:
        """Add a commit to a repository; return its hash."""
        listed = json.dumps([[path, blob(content)] for path, content in sorted(files.items())])
        commit = hashlib.sha1(listed.encode()).hexdigest()
        self.commits[repo] = commit
        answer = {"id": repo, "sha": commit, "private": False, "gated": False, "tags": [], **info}
        for revision in ("main", commit):
            self._put(f"/api/models/{repo}/revision/{revision}", answer)
        entries: list[dict[str, object]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
            for folder in sorted({path.rpartition("/")[0] for path in files} - {""})
        ]
        for path, content in files.items():
            entries.append(self._entry(path, content))
            self._serve(repo, commit, path, content)
        self.list(repo, entries)
        return commit

    def _entry(self, path: str, content: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
        if path.endswith(LONG):
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(content).hexdigest()}\n"
            oid = hashlib.sha256(content).hexdigest()
            entry["oid"] = blob(pointer.encode())
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": len(pointer)}
        return entry

    def _serve(self, repo: str, commit: str, path: str, content: bytes) -> None:
        place = f"/{repo}/resolve/{commit}/{quote(path)}"
        headers = {"X-Repo-Commit": commit}
        if path.endswith(LONG):
            sha256 = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
            self.own.files[place] = File(b"", redirect=f"{self.store.url}/lfs/{sha256}", headers=headers)
            self.store.files[f"/lfs/{sha256}"] = File(content, etag=f'"{sha256}"')
        else:
            self.own.files[place] = File(content, etag=f'"{blob(content)}"', headers=headers)

    def list(self, repo: str, entries: list[dict[str, object]]) -> None:
        """Make these the files of the newest commit of a repository."""
        tree = f"/api/models/{repo}/tree/{self.commits[repo]}?recursive=true"
        for start in range(0, len(entries) or 1, self.page):
            following = start + self.page
            last = following >= len(entries)
            link = {} if last else {"Link": f'<{self.url}{tree}&limit={self.page}&cursor=n%3D{following}>; rel="next"'}
            # The hub's own client says more than we do.
            addresses = [f"{tree}&limit={self.page}&cursor=n%3D{start}"] if start else [tree, f"{tree}&expand=false"]
            for address in addresses:
                self._put(address, entries[start:following], link)

    def _put(self, address: str, value: object, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.own.files[address] = File(content, etag=None, type="application/json", headers=headers or {})

    def long(self, content: bytes) -> File:
        """Return how a long file is served."""
        return self.store.files[f"/lfs/{hashlib.sha256(content).hexdigest()}"]

    def asked(self) -> list[str]:
        return [request.path for request in (*self.own.requests, *self.store.requests)]


@contextmanager
def serve_hub(page: int = 1000) -> Iterator[Hub]:
    with serve_files() as own, serve_files() as store:
        yield Hub(own, store, page)
