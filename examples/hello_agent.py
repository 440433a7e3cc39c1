"""An agent, inside a guest: report every half second how many requests were late."""

import sys
import time

import mchannel
from mchannel import Event

address = sys.argv[1] if len(sys.argv) > 1 else "shm:///web1"

with mchannel.open(address, timeout=30) as channel:
    for late in (0, 3, 40, 0):  # of 100 requests in each epoch
        detail = {"requests": 100, "soft": late, "hard": late // 2}
        channel.write(Event("sla.epoch", value=late / 100, at=time.time(), detail=detail))
        time.sleep(0.5)
