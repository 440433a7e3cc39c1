"""What the clock brings about happens at its own moment, whenever somebody looks at the clock."""

from __future__ import annotations

from tests.unit.test_alerts_language_meaning import H1, H2, WHOLE, Stream, clears, fires


def test_time_passes_moment_after_moment_however_late_the_clock_is_looked_at() -> None:
    for looks in [range(70), (30, 35), ()]:
        stream = Stream("x > 5 for 10s nodata fire")
        stream.send(0, 1)
        assert [edge for at in looks for edge in stream.tick(at)] + stream.tick(70) == fires(40)


def test_silence_that_fires_waits_from_the_moment_it_began_until_samples_say_otherwise() -> None:
    stream = Stream("x > 5 for 10s nodata fire")
    stream.send(0, 1)
    assert stream.send(39, 9) == []  # true since the silence at 30
    assert stream.send(40, 9) == fires(40)
    stream = Stream("x > 5 for 10s nodata fire")
    stream.send(0, 1)
    assert stream.send(39, 1) == []
    assert stream.tick(68) == []


def test_two_endpoints_that_fall_silent_within_one_tick_do_so_one_after_the_other() -> None:
    stream = Stream("all(x) > 5 nodata clear")
    stream.send(0, 9, to=(H1,))
    stream.send(5, 9, to=(H2,))
    assert stream.tick(60) == clears(35, WHOLE)
