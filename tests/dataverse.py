"""A Dataverse repository on loopback: lists files and hands them out, and goes wrong when it is told to.

For a person: `python -m tests.dataverse FOLDER` serves the files of a folder and says at which address.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from library.pairs.fetch import DATASETS


@dataclass
class Repository:
    """What is there. `faults` of a file are what goes wrong at its next requests, one each: a status such as 503, or
    breaks, stalls, says less, says more, wrong byte, ignores range, redirect, meets, or busy with a Retry-After."""

    files: dict[str, bytes] = field(default_factory=dict)
    listed: dict[str, dict[str, object]] = field(default_factory=dict)
    """By file, what its entry in the listing says otherwise."""
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    listing_faults: list[str] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(file, its Range header)."""
    url: str = ""
    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    """Where requests with the fault `meets` wait for one another."""

    def add(self, data: bytes, name: str | None = None) -> str:
        """Under a RawNIND name, if it is given no other. Returns the name."""
        name = name or f"Bayer_some_scene_ISO100_sha1={hashlib.sha1(data).hexdigest()}.arw"
        self.files[name] = data
        return name

    def listing(self) -> bytes:
        """The files, as Dataverse's native API lists them."""
        entries = []
        for number, (name, data) in enumerate(self.files.items()):
            checksum = {"type": "MD5", "value": hashlib.md5(data).hexdigest()}
            facts = {"id": number, "filename": name, "filesize": len(data), "checksum": checksum}
            changed = dict(self.listed.get(name, {}))
            label = {"label": changed.pop("label", name)}
            if "directoryLabel" in changed:
                label["directoryLabel"] = changed.pop("directoryLabel")
            entries.append({**label, "restricted": False, "dataFile": {**facts, **changed}})
        return json.dumps({"status": "OK", "data": entries}).encode()


class Handler(BaseHTTPRequestHandler):
    """Answers the two requests that a fetch makes."""

    protocol_version = "HTTP/1.1"
    repository: Repository

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        repository = self.repository
        if parts.path == "/api/datasets/:persistentId/versions/:latest-published/files":
            assert parse_qs(parts.query) == {"persistentId": [DATASETS["rawnind"]]}
            fault = repository.listing_faults.pop(0) if repository.listing_faults else ""
            body = b"<html>Welcome</html>" if fault == "a page" else repository.listing()
            self.send_body(200, body, fault="" if fault == "a page" else fault)
        elif parts.path.startswith("/api/access/datafile/"):
            name = list(repository.files)[int(parts.path.rpartition("/")[2])]
            repository.requests.append((name, self.headers["Range"]))
            fault = repository.faults[name].pop(0) if repository.faults[name] else ""
            if fault == "meets":
                repository.meeting.wait(timeout=10)
            if fault == "redirect":
                self.send_response(302)
                self.send_header("Location", self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.send_file(repository.files[name], fault)
        else:
            self.send_body(404, b"")

    def send_file(self, data: bytes, fault: str) -> None:
        if fault == "wrong byte":
            data = bytes([data[0] ^ 1]) + data[1:-1] + bytes([data[-1] ^ 1])
        asked = re.match(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(asked[1]) if asked and fault != "ignores range" else 0
        if asked and start >= len(data):
            self.send_body(416, b"")
        elif asked and fault != "ignores range":
            self.send_body(206, data[start:], fault, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
        else:
            self.send_body(200, data, fault)

    def send_body(self, status: int, body: bytes, fault: str = "", headers: dict[str, str] | None = None) -> None:
        said = len(body)
        if fault.isdigit():
            status, body, said = int(fault), b"", 0
        elif fault.startswith("busy "):
            status, body, said, headers = 429, b"", 0, {"Retry-After": fault.removeprefix("busy ")}
        elif fault in ("breaks", "stalls"):
            body = body[: len(body) // 2]
        elif fault == "says less":
            said //= 2
            body = body[:said]
        elif fault == "says more":
            said += 1000
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(said))
        self.end_headers()
        self.wfile.write(body)
        if fault == "stalls":
            self.connection.recv(1)  # until the other side gives up
        if len(body) != said:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(repository: Repository, port: int = 0) -> Iterator[Repository]:
    """The repository at its `url` for a block."""
    handler = type("Handler", (Handler,), {"repository": repository})
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        repository.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield repository
        finally:
            server.shutdown()
            thread.join()


def of_folder(folder: Path) -> Repository:
    """A repository of the files that lie in a folder."""
    return Repository({path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()})


if __name__ == "__main__":
    with serving(of_folder(Path(sys.argv[1]))) as served:
        print(served.url, flush=True)
        threading.Event().wait()
