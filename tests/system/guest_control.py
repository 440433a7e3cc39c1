"""In the guest: run what the test says through a virtio port of its own, one JSON object a line.

A move to another host may tear a line or lose an answer, so each request is numbered, and one that was seen is
answered again without being run again.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Iterator

PORT = "/dev/virtio-ports/org.mchannel.test"


def lines(port: int) -> Iterator[bytes]:
    """Yield whole lines; a host that comes or goes wakes, a host that is away does not."""
    edge = select.epoll()
    edge.register(port, select.EPOLLIN | select.EPOLLET)
    rest = b""
    while True:
        try:
            while chunk := os.read(port, 1 << 16):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
            rest = b""  # no host: what it began it will not end
        except BlockingIOError:
            pass
        edge.poll()


def run(argv: list[str], given: str) -> dict[str, object]:
    done = subprocess.run(argv, input=given, capture_output=True, text=True, errors="replace", check=False)
    return {"status": done.returncode, "out": done.stdout, "err": done.stderr}


def answer(port: int, message: bytes) -> None:
    while message:
        try:
            message = message[os.write(port, message) :]
        except BlockingIOError:
            if select.select([], [port], [], 1)[1] == []:
                return  # the host went; it will ask again


def main() -> None:
    port = os.open(PORT, os.O_RDWR | os.O_NONBLOCK)
    seen, last = 0, b""
    for line in lines(port):
        try:
            request = json.loads(line)
        except ValueError:
            continue
        if request["number"] > seen:
            seen = request["number"]
            try:
                result = run(request["argv"], request["input"])
            except OSError as error:
                result = {"status": 127, "out": "", "err": str(error)}
            last = json.dumps({"number": seen, **result}).encode() + b"\n"
        answer(port, last)


main()
