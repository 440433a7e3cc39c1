"""In domain 0: run what the test says, which comes by TCP; see xen_reach, the other end.

A connection is a command: its words, then what it is given; what it prints, then its status. One JSON object a line. A
connection that ends, ends its command.
"""

from __future__ import annotations

import json
import socket
import subprocess
from subprocess import PIPE
from threading import Lock, Thread
from typing import IO, Any

PORT = 9000


def serve(connection: socket.socket) -> None:
    """Run one command."""
    said, heard = connection.makefile("w"), connection.makefile()
    lock = Lock()

    def tell(**words: Any) -> None:
        with lock:
            print(json.dumps(words), file=said, flush=True)

    def relay(name: str, pipe: IO[str]) -> None:
        for line in pipe:
            tell(**{name: line})

    try:
        argv: list[str] = json.loads(heard.readline())
        with subprocess.Popen(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True, errors="replace") as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            relays = [Thread(target=relay, args=each) for each in (("out", process.stdout), ("err", process.stderr))]
            Thread(target=give, args=(process, process.stdin, heard), daemon=True).start()
            for each in relays:
                each.start()
            for each in relays:
                each.join()
            tell(status=process.wait())
    except OSError as error:
        tell(err=f"{error}\n", status=127)
    connection.shutdown(socket.SHUT_RDWR)


def give(process: subprocess.Popen[str], stdin: IO[str], heard: IO[str]) -> None:
    """Pass on what the command is given, and end it with its connection."""
    try:
        for line in heard:
            if (text := json.loads(line)) is None:
                stdin.close()
            else:
                stdin.write(text)
                stdin.flush()
    except (OSError, ValueError):
        pass
    process.terminate()


def main() -> None:
    with socket.create_server(("", PORT)) as door:
        while True:
            connection, _ = door.accept()
            Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
