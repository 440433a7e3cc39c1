"""Make the trace that ``mbroker replay`` is shown with: a simulated server in 40 seconds of rising load.

    python examples/record_trace.py [seed] > examples/web1.trace.jsonl

The seed is 1. Requests come at random and are served one after the other by one CPU; the meter that
counts them is the one of the SLA agent. Replay it under any policy:

    mbroker replay --policy basic examples/web1.trace.jsonl
"""

import random
import sys

from mbroker.replay import trace_line
from mchannel import Event
from mchannel.agents.meter import EPOCH, Meter

START = 1_700_000_000.0
EPOCHS = 80
RATES = (150, 450, 900, 1050, 450, 150)  # requests per second, in equal shares of the time
SERVICE = 0.0008  # seconds of CPU time that a request takes

dice = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
meter = Meter("web1", START)
arrival = free = busy = 0.0

for epoch in range(EPOCHS):
    end = (epoch + 1) * EPOCH
    before = busy
    while arrival < end:
        served = dice.gammavariate(4, SERVICE / 4)
        busy += served
        free = max(free, arrival) + served
        meter.observe(START + free, free - arrival)
        arrival += dice.expovariate(RATES[epoch * len(RATES) // EPOCHS])
    usage = round(min(1.0, (busy - before) / EPOCH), 4)
    meter.advance(START + end)
    for event in meter.take(utilization=usage):
        print(trace_line(event))
    number = round((START + end) / EPOCH) - 1
    print(trace_line(Event("cpu.usage", "web1", usage, START + end, {"epoch": number})))
