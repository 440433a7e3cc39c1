"""Wishes that cannot be are refused where they are made, not far away at a handshake."""

from __future__ import annotations

import sys
from typing import Any, get_type_hints

import attrs
import pytest

import mchannel
from mchannel import transport
from mchannel.address import Address
from mchannel.errors import AddressError
from mchannel.frame import Terms
from mchannel.transport import MAX_MESSAGE, MAX_WINDOW, Delivery, Options, Wishes, find_scheme

NONSENSE: list[tuple[str, object]] = [
    ("name", "x" * 256),
    ("name", "ü" * 128),
    ("name", "two\nlines"),
    ("name", b"bytes"),
    ("max_message", 0),
    ("max_message", MAX_MESSAGE + 1),
    ("max_message", 1e3),
    ("max_message", True),
    ("window", -1),
    ("window", MAX_WINDOW + 1),
    ("window", "4M"),
    ("delivery", "newest"),
    ("heartbeat", 0),
    ("heartbeat", -1.0),
    ("heartbeat", float("nan")),
    ("heartbeat", float("inf")),
    ("heartbeat", None),
    ("heartbeat", "1"),
    ("patience", 0),
    ("patience", -0.5),
    ("patience", float("nan")),
    ("patience", "long"),
    ("insecure", "no"),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_nonsense_is_refused_in_one_line_that_names_the_option(name: str, value: object) -> None:
    wishes: Any = {name: value}
    with pytest.raises(ValueError, match=rf"^{name} must be [^\n]+$"):
        mchannel.open("memory:///nobody", timeout=0, **wishes)
    with pytest.raises(ValueError, match=f"^{name} must be"):
        mchannel.listen("memory:///nobody", **wishes)


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(name="ü" * 127, max_message=1, window=1, delivery=Delivery.LATEST, heartbeat=1e-3, patience=1e-3),
        Options(max_message=MAX_MESSAGE, window=MAX_WINDOW),
    ],
)
def test_what_may_be_wished_can_be_agreed_on(options: Options) -> None:
    terms = Terms(options.max_message, options.window, options.delivery)
    assert Terms.parse(terms.fields()) == terms


def test_wishes_are_the_fields_of_options() -> None:
    assert set(get_type_hints(Wishes)) == {field.name for field in attrs.fields(Options)}


def test_a_transport_whose_parts_are_not_installed_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_load", vars(transport)["_load"].__wrapped__)  # the cache is kept
    monkeypatch.setitem(sys.modules, "mchannel.transports.memory", None)
    with pytest.raises(AddressError, match=r"memory:///web1: this installation cannot load the transport: .*halted"):
        find_scheme(Address.parse("memory:///web1"))
