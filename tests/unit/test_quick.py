"""The calls that are C methods of an end: what Python code could hand them."""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mchannel._quick import Quick
from mchannel.errors import MessageTooBig
from mchannel.transports.ring import Region, RingEnd, Side


@pytest.fixture
def region() -> Iterator[Region]:
    with Region.create(capacity=1 << 12, pool=1 << 16) as region:
        yield region


@pytest.fixture
def end(region: Region) -> Iterator[Any]:
    """An end without its types, so that it can be called wrongly."""
    with RingEnd(region, Side.A, limit=100) as end:
        yield end


@pytest.mark.parametrize(("name", "arguments"), [("read", ()), ("read_newest", ()), ("write", (b"x",))])
def test_an_end_that_never_joined_says_so(name: str, arguments: tuple[bytes, ...]) -> None:
    with pytest.raises(RuntimeError, match="joined"):
        getattr(Quick(), name)(*arguments)


@pytest.mark.parametrize("wrong", [bytearray(b"x"), memoryview(b"x"), "x", None])
def test_only_bytes_are_written(end: Any, wrong: object) -> None:
    with pytest.raises(TypeError):
        end.write(wrong)
    assert end.written == 0


def test_read_takes_a_timeout_and_nothing_else(end: Any) -> None:
    for arguments, names in (((0, 0), {}), ((0,), {"timeout": 0}), ((), {"patience": 0}), (("soon",), {})):
        with pytest.raises(TypeError):
            end.read(*arguments, **names)
    assert end.read(0) is end.read(timeout=0) is None


def test_an_error_is_raised_and_leaves_the_end_as_it_was(end: Any, region: Region) -> None:
    with pytest.raises(MessageTooBig):
        end.write(bytes(101))
    assert end.write(b"x")
    with RingEnd(region, Side.B) as other:
        assert other.read() == b"x"


def test_attention_does_not_pile_up_calls(region: Region) -> None:
    calls = 0

    def attend() -> None:
        nonlocal calls
        calls += 1
        if calls == 300:
            raise KeyboardInterrupt

    limit = sys.getrecursionlimit()
    with RingEnd(region, Side.A, attention=attend) as end:
        end._end.period = 1e-9  # pyright: ignore[reportPrivateUsage]
        sys.setrecursionlimit(len(inspect.stack(0)) + 100)
        try:
            with pytest.raises(KeyboardInterrupt):
                end.read(timeout=None)
        finally:
            sys.setrecursionlimit(limit)


def test_no_reference_is_left_behind(region: Region) -> None:
    message, timeout = b"m" * 50, 0.5

    def references() -> list[int]:
        return [sys.getrefcount(each) for each in (message, timeout, True, Quick)]

    with RingEnd(region, Side.A) as writer, RingEnd(region, Side.B) as reader:
        before = references()
        for _ in range(100):
            assert writer.write(message)
            held = sys.getrefcount(reader.read(timeout))  # beside the assert, which would hold it too
            assert held == 1
            assert reader.read_newest() is None
        grown = [now - then for now, then in zip(references(), before, strict=True)]
    assert max(grown) < 50


def test_an_end_in_a_cycle_is_collected(region: Region) -> None:
    gone: list[bool] = []

    class Owner:
        def __init__(self) -> None:
            self.end = RingEnd(region, Side.A, attention=self.attend)

        def attend(self) -> None: ...

        def __del__(self) -> None:
            gone.append(True)

    Owner()
    gc.collect()
    assert gone
