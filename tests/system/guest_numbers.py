"""In the guest: tell the broker numbers and take note of those it tells, until it says stop."""

from __future__ import annotations

import sys
import time
from collections import Counter

import mchannel
from mchannel import Event
from mchannel.errors import ChannelTimeout

INTERVAL = 0.02  # seconds between two numbers


def main() -> None:
    heard: Counter[int] = Counter()
    sent = 0
    with mchannel.open(sys.argv[1], timeout=60) as channel:
        print("open", flush=True)
        while True:
            channel.write(Event("number", value=sent))
            sent += 1
            due = time.monotonic() + INTERVAL
            while (left := due - time.monotonic()) > 0:
                try:
                    event = channel.read(timeout=left)
                except ChannelTimeout:
                    break
                number = int(str(event.value))
                if event.topic == "stop":
                    lost = number - sum(each < number for each in heard)
                    detail = {"lost": lost, "repeated": heard.total() - len(heard)}
                    channel.write(Event("end", value=sent, detail=detail))
                    return
                heard[number] += 1


main()
