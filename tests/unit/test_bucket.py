"""How often something may happen."""

from __future__ import annotations

from mchannel.transports.bucket import TokenBucket


def taken(bucket: TokenBucket, tries: int = 100) -> int:
    return sum(bucket.take() for _ in range(tries))


def test_a_burst_is_allowed_at_once_and_no_more() -> None:
    bucket = TokenBucket(1.0, 5, clock=lambda: 0.0)
    assert taken(bucket) == 5


def test_it_refills_at_its_rate_up_to_the_burst() -> None:
    now = 0.0
    bucket = TokenBucket(2.0, 5, clock=lambda: now)
    taken(bucket)
    now = 1.5
    assert taken(bucket) == 3
    now = 1000.0
    assert taken(bucket) == 5
