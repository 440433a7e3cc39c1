"""Run a command in a domain 0 as if it ran here: ``xen_reach.py PORT WORD...``; see xen_serve, the other end."""

from __future__ import annotations

import json
import os
import socket
import sys
from threading import Thread


def give(connection: socket.socket) -> None:
    """Pass on what this process is given."""
    for line in sys.stdin:
        connection.sendall(json.dumps(line).encode() + b"\n")
    connection.sendall(b"null\n")


def main() -> None:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        connection.sendall(json.dumps(sys.argv[2:]).encode() + b"\n")
        Thread(target=give, args=(connection,), daemon=True).start()
        for line in connection.makefile():
            said = json.loads(line)
            print(said.get("out", ""), end="", flush=True)
            print(said.get("err", ""), end="", file=sys.stderr, flush=True)
            if "status" in said:
                sys.stdout.flush()
                os._exit(said["status"] & 0xFF)  # the thread may wait for more to pass on
    os._exit(255)  # domain 0 is gone


main()
