"""Counting response times in epochs; no clock, no thread, no I/O."""

from __future__ import annotations

from collections import Counter, deque

import attrs

from mchannel.event import Event, Scalar

__all__ = ["EPOCH", "Meter", "epoch_of"]

EPOCH = 0.5
"""Seconds in an epoch. Epoch *n* begins at Unix time ``n * EPOCH`` (M-channels, section 4.1.1)."""

_LONGEST_US = 86_400_000_000  # a response time of more than a day is a day
_FILL = 10  # empty epochs that are reported one by one; a longer gap was a pause or a step of the clock
_KEEP = 120  # closed epochs that wait for take(): one minute
_LONGEST_NAME = 64  # characters of a note
_NAMES = 64  # of notes in one event, which must not be too long for a channel
_STEP_BACK = 2  # epochs; a clock this little behind is jitter


def epoch_of(time: float) -> int:
    """Return the number of the epoch that Unix *time* belongs to."""
    return int(time // EPOCH)


@attrs.define
class _Counts:
    """One epoch. Response times are whole microseconds, so that thresholds compare exactly."""

    epoch: int
    requests: int = 0
    hard: int = 0
    soft: int = 0
    longest: int = 0
    # Response times with their seven leading bits kept: below 1 % error, below 4,000 entries at any load.
    buckets: Counter[int] = attrs.field(factory=Counter[int])

    def p99_ms(self) -> float | None:
        """Return the nearest-rank 99th percentile, at most 1 % too high; None without requests."""
        rank = (99 * self.requests + 99) // 100
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                shift, leading = bucket >> 7, bucket & 127
                shift, leading = (shift - 1, leading | 128) if shift else (0, leading)
                return min(((leading + 1) << shift) - 1, self.longest) / 1000
        return None


def _bucket(us: int) -> int:
    """Number *us* by magnitude and seven more bits; the numbers ascend as the times do."""
    shift = us.bit_length() - 8
    return us if shift < 0 else (shift + 1 << 7) | (us >> shift & 127)


class Meter:
    """Counts requests, hard and soft violations, and the 99th percentile, epoch by epoch.

    A violation is a response time strictly greater than its threshold. An observation that comes late
    counts in the present epoch: an epoch that was reported is final. Epochs without requests are
    reported too, so that silence always means trouble. Memory is bounded whatever the load.

    ``hard_ms`` and ``soft_ms`` are the thresholds in milliseconds, ``now`` the Unix time at the start.
    Raises ValueError unless ``0 < soft_ms <= hard_ms``.
    """

    def __init__(self, source: str, now: float, *, hard_ms: float = 6.0, soft_ms: float = 3.0) -> None:
        if not 0 < soft_ms <= hard_ms < float("inf"):
            raise ValueError(f"thresholds must be 0 < soft <= hard, not soft {soft_ms} ms, hard {hard_ms} ms")
        self.source = source
        self.hard_ms = float(hard_ms)
        self.soft_ms = float(soft_ms)
        self._hard_us = round(hard_ms * 1000)
        self._soft_us = round(soft_ms * 1000)
        self._notes: Counter[str] = Counter()
        self._closed: deque[_Counts] = deque()
        self._begin(epoch_of(now))

    def observe(self, finished: float, seconds: float) -> None:
        """Count a request that ended at Unix time *finished* after *seconds* (to the microsecond)."""
        if finished >= self._end:
            self._go_on(epoch_of(finished))
        us = int(min(_LONGEST_US, max(0.0, seconds * 1e6)) + 0.5)
        counts = self._counts
        counts.requests += 1
        if us > self._soft_us:
            counts.soft += 1
        if us > self._hard_us:
            counts.hard += 1
        counts.longest = max(counts.longest, us)
        counts.buckets[_bucket(us)] += 1

    def note(self, name: str, count: int = 1) -> None:
        """Say in the detail of the next event that *name* happened *count* times.

        Raises ValueError unless the name has 1 to 64 characters; names beyond the 64th of an event are
        counted together as ``others``.
        """
        if not 0 < len(name) <= _LONGEST_NAME:
            raise ValueError(f"a note has a name of 1 to {_LONGEST_NAME} characters, not {len(name)}")
        self._notes[name if name in self._notes or len(self._notes) < _NAMES else "others"] += count

    def advance(self, now: float) -> None:
        """Close the epochs that are over at Unix time *now*.

        When the clock was set back, the present epoch is closed and counting goes on in the epoch that
        the clock shows now; when it was set forward by more than 5 s, the epochs between are not
        reported one by one but counted as ``skipped``.
        """
        epoch = epoch_of(now)
        if epoch > self._counts.epoch:
            self._go_on(epoch)
        elif epoch < self._counts.epoch - _STEP_BACK:
            self._close()
            self._begin(epoch)

    def flush(self) -> None:
        """Close the present epoch although it is not over, as at the end of a log or of the process."""
        self._close()
        self._begin(self._counts.epoch + 1)

    @property
    def ready(self) -> bool:
        """Whether epochs were closed that :meth:`take` has not returned."""
        return bool(self._closed)

    def take(self, utilization: float | None = None) -> list[Event]:
        """Return the ``sla.epoch`` events of the closed epochs, oldest first, and forget them.

        *utilization* is that of the guest over these epochs, 0.0..1.0, None when it is not known.
        """
        if not self._closed:
            return []
        events = [self._event(counts, utilization) for counts in self._closed]
        if self._notes:
            events[-1] = attrs.evolve(events[-1], detail={**events[-1].detail, **self._notes})
        self._closed.clear()
        self._notes.clear()
        return events

    def _begin(self, epoch: int) -> None:
        self._counts = _Counts(epoch)
        self._end = (epoch + 1) * EPOCH

    def _close(self) -> None:
        self._closed.append(self._counts)
        if len(self._closed) > _KEEP:
            self._closed.popleft()
            self.note("dropped")

    def _go_on(self, epoch: int) -> None:
        self._close()
        missing = range(self._counts.epoch + 1, epoch)
        if len(missing) > _FILL:
            self.note("skipped", len(missing))
            missing = range(0)
        for empty in missing:
            self._begin(empty)
            self._close()
        self._begin(epoch)

    def _event(self, counts: _Counts, utilization: float | None) -> Event:
        detail: dict[str, Scalar] = {
            "epoch": counts.epoch,
            "seconds": EPOCH,
            "requests": counts.requests,
            "hard": counts.hard,
            "soft": counts.soft,
            "hard_ms": self.hard_ms,
            "soft_ms": self.soft_ms,
            "p99_ms": counts.p99_ms(),
            "utilization": utilization,
        }
        value = counts.hard / counts.requests if counts.requests else 0.0
        return Event("sla.epoch", self.source, value, (counts.epoch + 1) * EPOCH, detail)
