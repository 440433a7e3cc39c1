"""Columns of samples on the wire, and what a publisher that lies in them cannot do."""

from __future__ import annotations

import math
import struct
from array import array

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbroker.alerts import selector
from mchannel import EventCodec
from mchannel.errors import CodecError
from mchannel.event import Event, Scalar
from mchannel.packing import pack
from mchannel.samples import (
    GROUP,
    MOST_DECLARED,
    MOST_INTERVAL,
    MOST_LABELS,
    MOST_SAMPLES,
    MOST_SERIES,
    RESERVED,
    Again,
    Declared,
    Named,
    Samples,
    declarations,
    is_label,
    is_name,
)

CPU = Named("cpu", (("core", "0"), ("host", "mvm1")))
RUN = 7


def samples(*rows: tuple[int, float, int], dropped: int = 0) -> Samples:
    numbers, values, times = zip(*rows, strict=True) if rows else ((), (), ())
    return Samples(RUN, array("I", numbers), array("d", values), array("q", times), dropped)


def over_the_wire(event: Event) -> Event:
    codec = EventCodec()
    return codec.decode(codec.encode(event))


# -- what is said arrives


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(), st.integers(-(2**63), 2**63 - 1)), max_size=50),
    st.integers(0, 2**63 - 1),
)
def test_samples_arrive_as_they_were_sent_whatever_their_values(
    rows: list[tuple[int, float, int]], dropped: int
) -> None:
    sent = samples(*rows, dropped=dropped)
    got = Samples.from_event(over_the_wire(sent.to_event(12.5)))
    assert (got.run, got.numbers, got.times, got.dropped) == (RUN, sent.numbers, sent.times, dropped)
    assert got.values.tobytes() == sent.values.tobytes()


def test_columns_are_little_endian() -> None:
    detail = samples((1, 0.5, -2)).to_event().detail
    assert (detail["numbers"], detail["values"], detail["times"]) == (
        struct.pack("<I", 1),
        struct.pack("<d", 0.5),
        struct.pack("<q", -2),
    )


def test_the_largest_batch_passes_the_usual_codec() -> None:
    most = samples(*[(n, math.pi, n) for n in range(MOST_SAMPLES)])
    assert Samples.from_event(over_the_wire(most.to_event())) == most


def test_a_declaration_arrives_as_it_was_sent() -> None:
    sent = Declared(RUN, 3, (CPU, Named("load")))
    event = over_the_wire(sent.to_event())
    assert (event.topic, Declared.from_event(event)) == ("metrics.series", sent)


def test_a_declaration_says_how_often_its_series_are_read() -> None:
    sent = Declared(RUN, 3, (CPU,), MOST_INTERVAL)
    assert Declared.from_event(over_the_wire(sent.to_event())) == sent


def test_a_declaration_that_does_not_say_it_is_as_older_ones_are() -> None:
    event = Declared(RUN, 3, (CPU,)).to_event()
    assert event.detail.keys() == {"run", "series"}
    assert Declared.from_event(event).interval is None


@pytest.mark.parametrize("interval", [0, -1, MOST_INTERVAL + 1, True, 1.5, "10"])
def test_an_interval_that_has_no_meaning_is_refused(interval: Scalar) -> None:
    event = Declared(RUN, 3, (CPU,)).to_event()
    with pytest.raises(CodecError, match="interval must be 1 to 86400000 milliseconds"):
        Declared.from_event(attrs.evolve(event, detail={**event.detail, "interval": interval}))


def test_a_broker_asks_again_for_the_run_that_it_does_not_know() -> None:
    assert Again.from_event(over_the_wire(Again(RUN).to_event())) == Again(RUN)


# -- pieces


@given(st.integers(1, 2000))
def test_as_many_samples_as_are_said_to_fit_do(room: int) -> None:
    most = Samples.most_in(room)
    whole = samples(*[(n, n / 3, 10**12 + n) for n in range(most)], dropped=1 << 62)
    assert most == 1 or len(EventCodec().encode(whole.to_event(1.5))) <= room < 20 * (most + 1) + 256


@given(st.integers(1, 4000), st.integers(0, 60), st.integers(0, 100))
def test_declarations_fit_their_room_and_are_all_of_them(room: int, count: int, first: int) -> None:
    series = [Named(f"m{n}", (("label", "x" * (n + 1)),)) for n in range(count)]
    parts = list(declarations(RUN, first, series, room, MOST_INTERVAL))
    assert [named for part in parts for named in part.series] == series
    assert [part.first for part in parts] == [first + sum(len(p.series) for p in parts[:n]) for n in range(len(parts))]
    assert all(len(part.series) == 1 or len(EventCodec().encode(part.to_event())) <= room for part in parts)


def test_a_declaration_holds_no_more_than_its_reader_takes() -> None:
    parts = list(declarations(RUN, 0, [Named("m")] * (MOST_DECLARED + 1), 1 << 20))
    assert [len(part.series) for part in parts] == [MOST_DECLARED, 1]


# -- names are those of the subscription language


def test_names_and_reserved_words_are_those_of_the_language() -> None:
    assert (RESERVED, GROUP) == (selector.WORDS, selector.GROUP)


@given(st.text(max_size=130) | st.from_regex(r"[A-Za-z_][A-Za-z0-9_.:]{0,130}") | st.sampled_from(sorted(RESERVED)))
def test_a_name_is_one_here_if_it_is_one_in_the_language(text: str) -> None:
    assert is_name(text) == selector.is_name(text)


@given(st.text(max_size=3) | st.text("ab", min_size=255, max_size=257))
def test_a_label_can_be_said_in_the_language(text: str) -> None:
    said = True
    try:
        selector.Label("a", selector.Relation.IS, text)
    except ValueError:
        said = False
    assert is_label(text) == (said and text != "")


@pytest.mark.parametrize(
    ("named", "why"),
    [
        (Named("for"), "a metric must have a name, not 'for'"),
        (Named("cpu usage"), "a metric must have a name"),
        (Named("m", (("9", "x"),)), "a label of m must have a name"),
        (Named("m", (("a", ""),)), "label a of m cannot be ''"),
        (Named("m", (("a", "\n"),)), "label a of m cannot be"),
        (Named("m", (("a", "x" * 257),)), "label a of m cannot be"),
        (Named("m", (("b", "x"), ("a", "x"))), "sorted"),
        (Named("m", (("a", "x"), ("a", "y"))), "sorted, and each be there once"),
        (Named("m", (("group", "x"), ("group", "x"))), "sorted, and each be there once"),
        (Named("m", tuple((f"a{n:02}", "x") for n in range(MOST_LABELS + 1))), "16 are the most"),
    ],
)
def test_a_series_that_cannot_be_subscribed_to_is_refused(named: Named, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Declared(RUN, 0, (named,))


def test_an_endpoint_may_be_in_several_groups() -> None:
    Named("m", (("group", "a"), ("group", "b"))).check()


# -- a publisher that lies


@pytest.mark.parametrize(
    "detail",
    [
        {},
        {"run": -1},
        {"run": True},
        {"run": 1 << 63},
        {"run": "7"},
        {"run": RUN, "numbers": b"\0\0\0"},
        {"run": RUN, "numbers": b"\0" * 8},
        {"run": RUN, "numbers": "text"},
        {"run": RUN, "numbers": (0,)},
        {"run": RUN, "dropped": -1},
        {"run": RUN, "dropped": 0.5},
        {"run": RUN, "numbers": bytes(4 * MOST_SAMPLES + 4), "values": bytes(8 * MOST_SAMPLES + 8)},
    ],
)
def test_columns_that_do_not_fit_together_are_refused(detail: dict[str, object]) -> None:
    good = {"numbers": b"\0" * 4, "values": b"\0" * 8, "times": b"\0" * 8}
    with pytest.raises(CodecError):
        Samples.from_event(Event("metrics.samples", detail={**good, **detail}))  # type: ignore[dict-item]


@pytest.mark.parametrize("first", [-1, None, 0.0, True, "0", MOST_SERIES])
def test_numbers_of_series_are_bounded(first: object) -> None:
    with pytest.raises(CodecError, match="numbers below"):
        Declared.from_event(Event("metrics.series", value=first, detail={"run": RUN, "series": pack([("m",)])}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "series",
    [b"", b"\xc1", pack({}), pack([1]), pack([()]), pack([("m", "a")]), pack([("m", 1, 2)]), pack([("m", "a", b"x")])],
)
def test_what_is_no_list_of_series_is_refused(series: bytes) -> None:
    with pytest.raises(CodecError):
        Declared.from_event(Event("metrics.series", value=0, detail={"run": RUN, "series": series}))


words = st.text(max_size=4) | st.just("m") | st.integers(-(2**63), 2**64 - 1) | st.none() | st.binary(max_size=3)
fields = (
    words
    | st.binary(max_size=40)
    | st.sampled_from([bytes(4), bytes(8), bytes(16)])
    | st.lists(st.lists(words, max_size=5), max_size=4).map(pack)
)


@given(
    fields | st.floats(allow_nan=False),
    st.dictionaries(st.sampled_from(["run", "numbers", "values", "times", "series", "dropped"]), fields),
)
def test_whatever_is_said_is_read_or_refused_and_what_is_read_is_valid(
    value: object, detail: dict[str, object]
) -> None:
    event = Event("metrics.any", value=value, detail=detail)  # type: ignore[arg-type]
    for kind in (Samples, Declared, Again):
        try:
            read = kind.from_event(event)
        except CodecError:
            pass
        else:
            assert kind.from_event(over_the_wire(read.to_event())).to_event().detail == read.to_event().detail


@given(st.binary(max_size=200))
def test_random_bytes_declare_nothing_that_is_not_valid(raw: bytes) -> None:
    try:
        read = Declared.from_event(Event("metrics.series", value=0, detail={"run": RUN, "series": raw}))
    except CodecError:
        return
    for named in read.series:
        named.check()
