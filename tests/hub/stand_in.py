"""A Hub of one data set on this machine: what its clients ask for, and no more."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY, COMMIT = "me/rows", "0123456789abcdef" * 2 + "01234567"


@contextmanager
def hub_of(files: Mapping[str, str | bytes]) -> Iterator[str]:
    """The address of a Hub whose only data set, `me/rows`, has these files."""
    contents = {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def found(self, what: Any) -> None:
            self.answer(200, json.dumps(what).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            path = unquote(address.path)
            api, resolve = f"/api/datasets/{REPOSITORY}", f"/datasets/{REPOSITORY}/resolve/"
            if path.startswith(resolve):
                name = path.removeprefix(resolve).partition("/")[2]
                if name not in contents:
                    return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                content, wanted = contents[name], self.headers.get("Range")
                about = {"ETag": f'"{sha1(content).hexdigest()}"', "X_Repo_Commit": COMMIT}
                if wanted is None:
                    return self.answer(200, content, **about)
                first, last = (int(place or len(content)) for place in wanted.removeprefix("bytes=").split("-"))
                where = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
                return self.answer(206, content[first : last + 1], Content_Range=where, **about)
            if path.startswith(f"{api}/tree/"):
                within = path.removeprefix(f"{api}/tree/").partition("/")[2]
                deep = parse_qs(address.query).get("recursive", ["false"])[0].lower() == "true"
                entries = entries_of(contents, within, deep)
                if within and not entries:
                    return self.answer(404, X_Error_Code="EntryNotFound")
                return self.found(entries)
            if path == api or path.startswith(f"{api}/revision/"):
                siblings = [{"rfilename": name} for name in contents]
                return self.found({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "tags": []})
            return self.answer(404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            try:
                paths = json.loads(asked)["paths"]
            except ValueError:
                paths = parse_qs(asked)["paths"]
            every = entries_of(contents, "", True)
            self.found([entry for entry in every if entry["path"] in paths])

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def entries_of(contents: dict[str, bytes], within: str, deep: bool) -> list[dict[str, Any]]:
    """Files and folders in a folder, as the Hub lists them; with `deep` also those further in."""
    start = f"{within}/" if within else ""
    found: dict[str, dict[str, Any]] = {}
    for name, content in contents.items():
        if name.startswith(start):
            parts = name.removeprefix(start).split("/")
            for depth in range(1, len(parts) if deep else 2):
                if depth < len(parts):
                    folder = start + "/".join(parts[:depth])
                    found[folder] = {"type": "directory", "path": folder, "size": 0, "oid": sha1(b"").hexdigest()}
            if deep or len(parts) == 1:
                oid = sha1(content).hexdigest()
                found[name] = {"type": "file", "path": name, "size": len(content), "oid": oid}
    return list(found.values())
