"""How often something may happen."""

from __future__ import annotations

from mchannel.bucket import TokenBucket


def taken(bucket: TokenBucket, now: float, tries: int = 100) -> int:
    return sum(bucket.take(now) for _ in range(tries))


def test_a_burst_is_allowed_at_once_and_no_more() -> None:
    assert taken(TokenBucket(1.0, 5), 0.0) == 5


def test_it_refills_at_its_rate_up_to_the_burst() -> None:
    bucket = TokenBucket(2.0, 5)
    taken(bucket, 0.0)
    assert taken(bucket, 1.5) == 3
    assert taken(bucket, 1000.0) == 5


def test_a_clock_that_goes_back_adds_nothing_and_takes_nothing_away() -> None:
    bucket = TokenBucket(2.0, 5)
    assert taken(bucket, 10.0, tries=2) == 2
    assert taken(bucket, 0.0) == 3
    assert taken(bucket, 10.0) == 0
    assert taken(bucket, 11.0) == 2
