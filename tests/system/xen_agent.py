"""The agent of the Xen scenario: numbers what it says, and answers every number that it hears."""

from __future__ import annotations

import json
import time
from pathlib import Path

import mchannel

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def main() -> None:
    """Talk until the broker says goodbye."""
    said = 0
    with mchannel.open("xen:///mgmt", codec=mchannel.RawCodec(), name="agent") as channel:
        print("agent: open", flush=True)

        def say(heard: int | None) -> None:
            nonlocal said
            said += 1
            channel.write(json.dumps({"number": said, "boot": BOOT, "heard": heard}).encode())

        due = time.monotonic()
        while True:
            try:
                heard = int(channel.read(timeout=max(due - time.monotonic(), 0.001)))
                channel.done()
                say(heard)
            except mchannel.ChannelTimeout:
                due = time.monotonic() + 0.05
                say(None)
            except mchannel.EndOfChannel:
                return


main()
