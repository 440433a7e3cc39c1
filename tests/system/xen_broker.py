"""Domain 0's side of the Xen scenario: a broker, and somebody at the toolstack beside it.

Says what happened in lines of JSON on the console, one a step; the test reads them there.
"""

from __future__ import annotations

import json
import logging
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event, Thread

import mchannel
from mchannel.transports import xen
from mchannel.transports.xenlib import LIBXEN

SOON = 300.0
UNANSWERED = 8
"""Numbers that the agent has not answered, before the broker waits: some are on their way at any time."""
CONFIG = """
name = "{kind}"
type = "{kind}"
kernel = "/guest/kernel"
ramdisk = "/guest/initrd"
memory = 128
maxmem = 128
vcpus = 1
extra = "console=hvc0 quiet panic=5 oops=panic"
on_crash = "destroy"
"""


class Broker(Thread):
    """Sends numbers to one agent, hears its own, and counts what is amiss."""

    def __init__(self, before: Broker | None = None) -> None:
        super().__init__(daemon=True)
        self.identity = ""
        self.boots: set[str] = set()
        self.lost = self.repeated = 0
        self.said: int = before.said if before else 0
        self.answered = self._first = self.said
        self.heard: int = before.heard if before else 0
        """Highest number of the agent that this broker, or the one before it, took care of."""
        self.error = ""
        self._leave = Event()
        self.listener = mchannel.listen("xen:///mgmt", codec=mchannel.RawCodec())

    def run(self) -> None:
        """Talk until told to stop."""
        try:
            with self.listener:
                channel = self.listener.accept(timeout=SOON)
                self.identity = channel.peer.identity
                while not self._leave.is_set():
                    if self.said - self.answered < UNANSWERED:
                        self.said += 1
                        channel.write(b"%d" % self.said, timeout=SOON)
                    try:
                        self._hear(channel.read(timeout=0.05))
                    except mchannel.ChannelTimeout:
                        continue
                    channel.done()
        except Exception as error:  # whatever it is, the test must see it
            self.error = repr(error)

    def _hear(self, message: bytes) -> None:
        said = json.loads(message)
        self.boots.add(said["boot"])
        self.lost += max(said["number"] - self.heard - 1, 0)
        self.repeated += said["number"] <= self.heard
        self.heard = max(self.heard, said["number"])
        if said["heard"] is not None and said["heard"] > self._first:  # not an answer to the one before
            self.lost += max(said["heard"] - self.answered - 1, 0)
            self.repeated += said["heard"] <= self.answered
            self.answered = max(self.answered, said["heard"])

    def ping(self, count: int = 100) -> float:
        """Wait until *count* more numbers were answered; return the seconds that it took."""
        start, target = time.monotonic(), self.answered + count
        while self.answered < target and not self.error and time.monotonic() - start < SOON:
            time.sleep(0.005)
        if self.answered < target:
            raise RuntimeError(self.error or f"{target - self.answered} of {count} numbers were not answered")
        return time.monotonic() - start

    def stop(self) -> None:
        """End in good order."""
        self._leave.set()
        self.join(SOON)

    def counts(self) -> dict[str, object]:
        """Return what was counted so far."""
        kept = ("identity", "said", "answered", "heard", "lost", "repeated", "error")
        return {"boots": len(self.boots), **{name: getattr(self, name) for name in kept}}


def say(step: str, **facts: object) -> None:
    """Tell the test."""
    print("\nXEN " + json.dumps({"step": step, "up": round(time.monotonic(), 1), **facts}), flush=True)


def xl(*words: str) -> str:
    """Run the toolstack."""
    done = subprocess.run(["xl", *words], check=False, capture_output=True, text=True, timeout=SOON)
    if done.returncode:
        raise RuntimeError(f"xl {' '.join(words)}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def number(name: str) -> int:
    """Return the number that a domain has now."""
    return int(xl("domid", name))


def create(kind: str) -> None:
    """Start a guest, called by its kind."""
    config = Path(f"/tmp/{kind}.cfg")
    config.write_text(CONFIG.format(kind=kind))
    xl("create", "-q", str(config))


def save(name: str) -> None:
    """Save, and restore."""
    xl("save", name, "/tmp/saved")
    xl("restore", "/tmp/saved")
    Path("/tmp/saved").unlink()


def checkpoint(name: str) -> None:
    """Save, and go on."""
    xl("save", "-c", name, "/tmp/saved")
    Path("/tmp/saved").unlink()


def migrate(name: str) -> None:
    """Move a running guest to this very host."""
    xl("migrate", "-s", "", name, "xl migrate-receive")


def life(kind: str, moves: Mapping[str, tuple[Callable[[str], None], bool]]) -> None:
    """Start a guest, do to it what *moves* names, announced or not, and talk to it all the time."""
    broker = Broker()
    broker.start()
    create(kind)
    say(f"{kind}: ping", seconds=broker.ping(), domain=number(kind), **broker.counts())
    for what, (move, announced) in moves.items():
        before = number(kind)
        quiet = xen.quiesce(before, timeout=20) if announced else None
        move(kind)
        after, start = number(kind), time.monotonic()
        if announced and after == before:
            xen.resume(after)
        answered = broker.answered
        while broker.answered == answered and time.monotonic() - start < SOON and not broker.error:
            time.sleep(0.001)
        first = time.monotonic() - start
        seconds = broker.ping()
        say(f"{kind}: {what}", seconds=seconds, first=first, quiet=quiet, before=before, after=after, **broker.counts())
    strangers(kind, number(kind), broker)
    broker.stop()
    say(f"{kind}: end", **broker.counts())
    successor = Broker(broker)
    successor.start()
    say(f"{kind}: another broker", seconds=successor.ping(), **successor.counts())
    successor.stop()
    xl("destroy", kind)


def strangers(kind: str, domain: int, broker: Broker) -> None:
    """Offer what nobody can use, in the name of a guest."""
    lines: list[str] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logging.getLogger("mchannel").addHandler(Reader())
    store = LIBXEN.store()
    path = f"/local/domain/{domain}/data/mchannel/evil/offer"
    offers = (b"\x00\xff", b"2 1 8", b"1 99999999 8", b"1 3 " + b" ".join([b"4000000000"] * 3))
    with mchannel.listen("xen:///evil", codec=mchannel.RawCodec()) as listener:
        for offer in (*offers, b"1 3 " + b" ".join(b"%d" % each for each in range(900, 941))):
            store.write(path, offer)
            try:
                listener.accept(timeout=0.5)
                lines.append("accepted")
            except mchannel.ChannelTimeout:
                pass
    store.remove(path)
    store.close()
    say(f"{kind}: strangers", offers=len(offers) + 1, lines=lines, seconds=broker.ping(20), **broker.counts())


def main() -> None:
    """Live through everything; end with the word that it was all."""
    try:
        life(
            "pv",
            {
                "save and restore": (save, True),
                "save and go on": (checkpoint, False),
                "announced, then only copied": (checkpoint, True),
                "save and restore unannounced": (save, False),
            },
        )
        life(
            "pvh",
            {
                "save and restore": (save, True),
                "live migration": (migrate, True),
                "live migration unannounced": (migrate, False),
            },
        )
        say("all")
    except Exception as error:  # the console is the only way out
        say("failed", error=repr(error))
    for log in (*Path("/var/log/xen/console").glob("guest-*.log"), *Path("/var/log/xen").glob("xl-*.log")):
        print(log.name, log.read_text(errors="replace")[-2000:], sep="\n", flush=True)


main()
