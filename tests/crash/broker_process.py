"""A broker process for the tests that kill it.

It appends each message to a log, one write each, and says so before it asks for the next. It is
done when its agent said goodbye after the message ``end``, unless it dies by SIGKILL before the
so-manieth line of Python that runs in the channel's files.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import mchannel
from mchannel import RawCodec
from mchannel.errors import ChannelTimeout, EndOfChannel

FILES = {
    "session.py",
    "reader.py",
    "writer.py",
    "frame.py",
    "port.py",
    "framed.py",
    "channel.py",
    "shm.py",
    "shmlink.py",
    "line.py",
    "ring.py",
    "zmq.py",
}


def main(address: str, log: Path, told: Connection, kill: int = 0) -> None:
    """Be the broker at *address*; die before line *kill*, or say through *told* how many have run, and stay."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        path = Path(frame.f_code.co_filename)
        if path.name not in FILES or path.parent.name not in {"mchannel", "transports"}:
            return None
        if event == "line":
            lines += 1
            if lines == kill:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with mchannel.listen(address, RawCodec(), heartbeat=0.2) as listener, listener.accept(timeout=60) as channel:
        while True:
            message = channel.receive(timeout=60)
            os.write(out, b"%s %d\n" % (message.value, message.redelivered))
            if message.value == b"end":
                break
        with suppress(EndOfChannel, ChannelTimeout):  # an agent that looks for its broker now must find it
            channel.receive(timeout=30)
    sys.settrace(None)
    told.send(lines)
    told.poll(60)  # last words may be on their way still; whoever started this ends it
