"""A broker, on the host: let the paper's basic policy decide about what one agent reports."""

import sys

import mchannel
from mbroker import Broker, Domain, Host, attributed
from mbroker.policies.sla_dvfs import Basic

address = sys.argv[1] if len(sys.argv) > 1 else "shm:///web1"
broker = Broker(Host("node1", domains={"web1": Domain("web1", level=1)}), [Basic()])

with mchannel.listen(address) as listener, listener.accept(timeout=30) as channel:
    for event in channel:  # until the agent closes its end
        print(event.value, *broker.handle(attributed(event, domain="web1")))
