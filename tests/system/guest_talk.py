"""In the guest: tell whichever broker is there numbers, and take note of those that any broker tells."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import mchannel
from mchannel import Event
from mchannel.errors import ChannelTimeout
from mchannel.transport import Wishes


def main(address: str, interval: float) -> None:
    heard: Counter[tuple[str, int]] = Counter()
    sent, longest, last = 0, 0.0, time.monotonic()
    wishes: Wishes = {"keys": Path("/tmp/keys")} if address.startswith("tcp:") else {}
    with mchannel.open(address, timeout=None, **wishes) as channel:
        print("open", flush=True)
        started = time.process_time()
        due = time.monotonic()
        while True:
            channel.write(Event("number", value=sent))
            sent += 1
            due = max(due + interval, time.monotonic())
            while (left := due - time.monotonic()) > 0:
                try:
                    event = channel.read(timeout=left)
                except ChannelTimeout:
                    break
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
                if event.topic == "stop":
                    hosts = {source: 0 for source, _ in heard}
                    for source, _ in heard:
                        hosts[source] += 1
                    detail: dict[str, float] = {f"from_{source}": count for source, count in hosts.items()}
                    cpu = time.process_time() - started
                    detail |= {"repeated": heard.total() - len(heard), "longest": longest, "cpu": cpu}
                    channel.write(Event("end", value=sent, detail=detail))
                    channel.flush(timeout=30)
                    return
                heard[event.source, int(str(event.value))] += 1


main(sys.argv[1], float(sys.argv[2]))
