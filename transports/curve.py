"""Who may connect over CURVE, decided from the keys that are trusted; speaks no ZeroMQ itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mchannel import keys
from mchannel.address import Address
from mchannel.errors import KeyFileError
from mchannel.transports.complaints import Complaints

__all__ = ["Gatekeeper", "server_key"]

_SETTLED = 2_000_000_000  # ns: a folder changed more recently may change again without a new time stamp


class Gatekeeper:
    """Answers libzmq's question, for each handshake, whether a key may come in (ZAP, ZeroMQ RFC 27).

    The trusted keys are read again when their folder has changed, so that trust given or taken
    away holds from the next handshake on.
    """

    def __init__(self, folder: Path, complaints: Complaints) -> None:
        self._folder = folder
        self._complaints = complaints
        self._names: Mapping[bytes, str] = {}
        self._stamp: int | None = None

    def answer(self, request: Sequence[bytes]) -> list[bytes]:
        """Return the reply to *request*; the name under which a key is trusted becomes the user id."""
        match request:
            case (b"1.0", serial, _, address, _, b"CURVE", key):
                if name := self._name(key, address.decode("ascii", "replace").removeprefix("::ffff:")):
                    return [b"1.0", serial, b"200", b"OK", name.encode(), b""]
                return [b"1.0", serial, b"400", b"unknown key", b"", b""]
            case _:
                serial = request[1] if len(request) > 1 else b""
                return [b"1.0", serial, b"400", b"CURVE only", b"", b""]

    def _name(self, key: bytes, address: str) -> str | None:
        try:
            self._refresh()
        except KeyFileError as error:
            self._stamp, self._names = None, {}
            self._complaints.make(f"nobody can connect: {error}")
            return None
        if key not in self._names:
            short = keys.fingerprint(key)
            self._complaints.make(f"refused unknown key {short} from {address}; let it in by: mbroker keys trust")
        return self._names.get(key)

    def _refresh(self) -> None:
        try:
            stamp = (self._folder / "trusted").stat().st_mtime_ns
        except OSError:
            stamp = 0  # nothing trusted yet, or a folder that trusted() will complain about
        if stamp != self._stamp:
            settled = time.time_ns() - stamp > _SETTLED
            self._names = {key.raw: name for name, key in keys.trusted(self._folder).items()}
            self._stamp = stamp if settled and stamp else None


def server_key(folder: Path, address: Address) -> tuple[str, keys.PublicKey]:
    """Return name and key that the broker at *address* must have; raise KeyFileError when that is not known.

    It is the trusted key that ``?server=NAME`` says, else the one named like the host, else the
    only one that was trusted as a server's.
    """
    known = keys.trusted(folder)
    wanted = address.option("server")
    name = address.host if wanted is None else wanted
    if name in known:
        return name, known[name]
    if wanted is not None:
        raise KeyFileError(
            f"{folder} trusts no key called {wanted}; add it by: mbroker keys trust {wanted} FILE --server"
        )
    servers = [(name, key) for name, key in known.items() if key.server]
    if len(servers) != 1:
        raise KeyFileError(
            f"{folder} trusts {len(servers)} server keys, so {address} needs ?server=NAME; see: mbroker keys trust"
        )
    return servers[0]
