"""A web server on this machine, which can misbehave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """What the server offers, how it misbehaves, and what it was asked for (file, Range header)."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    content_range: str | None = None
    announce: bool = True
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *args: object) -> None:
        self.state = server
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        name, wanted = self.path.rpartition("/")[2], self.headers.get("Range")
        self.state.requests.append((name, wanted))
        status = self.state.statuses.pop(0) if self.state.statuses else 200
        if status != 200 or name not in self.state.files:
            self.send_error(status if status != 200 else 404)
            return
        data, start = self.state.files[name], 0
        if wanted and self.state.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            extent = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send_header("Content-Range", self.state.content_range or extent)
        else:
            self.send_response(200)
        body = data[start:]
        if self.state.announce:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.state.cuts.pop(0)] if self.state.cuts else body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, state)) as http:
        state.url = f"http://127.0.0.1:{http.server_address[1]}/some/folder"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            http.shutdown()
            thread.join()
