"""A policy of your own: raise the clock at a violation, and tell a person when that is not enough."""

from collections.abc import Iterator

import attrs

from mbroker import Action, Broker, Domain, Host, Notify, SetFrequency
from mchannel import Event


@attrs.define
class SlaFirst:
    topics: tuple[str, ...] = ("sla.epoch",)
    tolerated: float = 0.01  # fraction of an epoch's requests that may be late

    def decide(self, event: Event, host: Host) -> Iterator[Action]:
        if isinstance(event.value, float) and event.value > self.tolerated:
            if host.level(event.source) < host.top:
                yield SetFrequency(event.source, step=+1)
            else:
                yield Notify(event.source, f"{event.value:.0%} late at top speed")


if __name__ == "__main__":  # no channel, no clock: the same object runs live and here
    broker = Broker(Host("node1", domains={"web1": Domain("web1", level=3)}), [SlaFirst()])
    for late in (0.0, 0.25, 0.25):
        print(late, broker.handle(Event("sla.epoch", source="web1", value=late)))
