"""The server: HTTP on loopback, a thread for each connection, CPU-bound answers, the SLA agent inside.

``python -m examples.demo.server CHANNEL HARD_MS SOFT_MS`` prints its port when it is ready, and serves
until its standard input ends: it cannot outlive whoever started it.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import mchannel
from mchannel.agents.sla import Sla

__all__ = ["Busy", "work"]

_MOST = 10_000_000  # iterations


def work(iterations: int) -> str:
    """Return the answer to a request: a key stretched by so many rounds, other threads go on meanwhile."""
    return hashlib.pbkdf2_hmac("sha256", b"m-channel", b"demo", iterations).hex()


class Busy:
    """Share of the time in which at least one request was in hand.

    It is the server's own view of its CPU, and counts what the quota takes away as busy: as a guest's
    governor counts stolen time (M-channels, section 4.1.1).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_hand = 0
        self._since = self._asked = time.monotonic()
        self._busy = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._settle()
            self._in_hand += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._settle()
            self._in_hand -= 1

    def __call__(self) -> float:
        """Return 0.0..1.0 since the last call."""
        with self._lock:
            self._settle()
            share = self._busy / max(self._since - self._asked, 1e-9)
            self._asked, self._busy = self._since, 0.0
        return min(share, 1.0)

    def _settle(self) -> None:
        now = time.monotonic()
        if self._in_hand:
            self._busy += now - self._since
        self._since = now


def _handler(sla: Sla, busy: Busy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open
        disable_nagle_algorithm = True
        wbufsize = 1 << 16  # head and body in one packet

        def do_GET(self) -> None:
            with busy, sla.request():
                asked = self.path.removeprefix("/")
                if not asked.isdecimal() or not 0 < int(asked) <= _MOST:
                    self.send_error(404, "ask for /NUMBER")
                    return
                body = work(int(asked)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say what went wrong, unless the client has just left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # printed only


def main() -> None:
    """Serve until standard input ends."""
    address, hard_ms, soft_ms = sys.argv[1:]
    busy = Busy()
    with (
        mchannel.open(address, name="sla") as channel,
        Sla(channel, source="web1", hard_ms=float(hard_ms), soft_ms=float(soft_ms), utilization=busy) as sla,
        _Server(("127.0.0.1", 0), _handler(sla, busy)) as server,
    ):
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
