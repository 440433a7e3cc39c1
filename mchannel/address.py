"""Addresses: which wire, and which end of it."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import attrs

from mchannel.errors import AddressError

__all__ = ["Address", "runtime_dir"]

_HOST = re.compile(r"[A-Za-z0-9.:_-]{1,255}|\*")
_NUMERIC = re.compile(r"[0-9.]+|.*:.*")  # what only an IP address can look like
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_LIMIT = 1024


def runtime_dir() -> Path:
    """Return the folder in which names of this host's channels are found.

    ``$MCHANNEL_RUNTIME_DIR`` when set, ``/run/mchannel`` for root, else ``$XDG_RUNTIME_DIR/mchannel``
    or a folder of the user's own under ``/tmp``.
    """
    if named := os.environ.get("MCHANNEL_RUNTIME_DIR"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/run/mchannel")
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "mchannel"
    return Path(f"/tmp/mchannel-{os.geteuid()}")  # noqa: S108 - made 0700 and checked by who uses it


@attrs.frozen
class Address:
    """One end of a channel, written as a URL.

    ``shm:///web1``, ``ipc:///web1``, ``memory:///web1``, ``tcp://10.0.0.7:7600?server=mvm1``,
    ``virtio:///org.mchannel.0``, ``xen://5/mgmt``.
    """

    scheme: str
    """Which transport: the name of an entry point in the group ``mchannel.transports``."""
    host: str = ""
    port: int | None = None
    path: str = ""
    """What follows the host, without the first slash."""
    options: tuple[tuple[str, str], ...] = ()
    """The query, in order."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address that *text* names; raise :class:`AddressError` when it names none."""
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            raise AddressError(f"an address is text, for example 'shm:///web1', not {type(text).__name__}")
        if len(text) > _LIMIT or not text.isprintable() or "://" not in text:
            raise AddressError(f"{text[:80]!r} is not an address; write SCHEME://..., for example shm:///web1")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise AddressError(f"{text!r} is not an address: {error}") from None
        if parts.fragment or parts.username or parts.password:
            raise AddressError(
                f"{parts.scheme}://{parts.hostname or ''}... has a user, password or fragment; leave it out"
            )
        return cls(
            scheme=parts.scheme,
            host=parts.hostname or "",
            port=port,
            path=parts.path.removeprefix("/"),
            options=tuple(parse_qsl(parts.query, keep_blank_values=True)),
        )

    def option(self, name: str) -> str | None:
        """Return the last value of the query's *name*, or None."""
        return dict(self.options).get(name)

    def refuse_options(self, *known: str) -> None:
        """Raise :class:`AddressError` when the query names anything but *known*: a misspelt option must not be lost."""
        if unknown := {name for name, _ in self.options} - {*known}:
            may = f"only {', '.join(known)}" if known else "leave it out"
            raise AddressError(f"{self}: {self.scheme} knows no option {min(unknown)!r}; {may}")

    def endpoint(self) -> tuple[str, int]:
        """Return the host and the port of a network address; the host is an IP address, a name, or ``*`` for all.

        Raises :class:`AddressError` for what cannot be one, and for a path. Nothing is looked up.
        """
        if not _HOST.fullmatch(self.host) or self.port is None or self.path:
            raise AddressError(
                f"{self} is no network address; write {self.scheme}://HOST:PORT, for example {self.scheme}://10.0.0.7:7600"
            )
        if _NUMERIC.fullmatch(self.host):
            try:
                ipaddress.ip_address(self.host)
            except ValueError:
                raise AddressError(f"{self}: {self.host} is no IP address; write it as 10.0.0.7 or [fd00::7]") from None
        return self.host, self.port

    def file(self, suffix: str) -> Path:
        """Return the path that a local address stands for.

        ``shm:///web1`` is the name ``web1`` in :func:`runtime_dir`; with more than one part it is
        an absolute path. Raises :class:`AddressError` for an empty or unsafe name, and for options.
        """
        if self.host or self.port is not None:
            raise AddressError(f"{self}: a local address has three slashes, for example {self.scheme}:///web1")
        self.refuse_options()
        if "/" in self.path:
            return Path("/" + self.path)
        if not _NAME.match(self.path):
            raise AddressError(
                f"{self}: a name has 1 to 64 letters, digits, dots, dashes or underscores, for example {self.scheme}:///web1"
            )
        return runtime_dir() / f"{self.path}{suffix}"

    def __str__(self) -> str:
        """Return the address as it is written."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        query = "&".join(f"{key}={value}" for key, value in self.options)
        return f"{self.scheme}://{host}{port}/{self.path}".removesuffix("/" if host else "") + (query and f"?{query}")
