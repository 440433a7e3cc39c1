"""Identity: this end's own key, and the keys of those it trusts.

::

    key = new(folder, "web1")  # make a key pair; KeyFileError when there is one
    key = own(folder)  # KeyPair: name, public, secret (hidden in its repr)
    print(key.public.fingerprint)  # "3f9a 11c0 ..." for people to compare
    text = show(folder)  # what the other side gives to trust()
    trust(folder, "mvm1", text)  # that key may connect, and is then called mvm1
    trust(folder, "mvm1", text, server=True)  # and it is a broker that this end dials
    untrust(folder, "mvm1")  # the next connection with that key is refused
    trusted(folder)  # {"mvm1": PublicKey(...)}
    default_folder()  # where keys are when nobody says otherwise

A folder (mode 0700) holds ``identity.key`` (secret, mode 0600), ``identity.pub`` (its public half,
to be copied to others) and ``trusted/NAME.pub``. Each file is a header line and a CURVE key in
Z85. Every function raises :exc:`~mchannel.errors.KeyFileError` when a file is missing
(:exc:`NoSuchKey`), malformed, owned by someone else or open to others, and leaves the folder as it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from mchannel.errors import KeyFileError

__all__ = [
    "KeyNameError",
    "KeyPair",
    "NoSuchKey",
    "PublicKey",
    "check_name",
    "default_folder",
    "fingerprint",
    "new",
    "own",
    "show",
    "trust",
    "trusted",
    "untrust",
]

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_Z85 = r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}"
_FILE = re.compile(rf"\s*(?:# mchannel (public|server|secret) key of ({_NAME})\r?\n)?({_Z85})\s*", re.ASCII)
_LIMIT = 512  # bytes of a key file; a real one has about 100
_log = logging.getLogger(__name__)


class NoSuchKey(KeyFileError):
    """There is no key of that name, or this end has none of its own yet."""


class KeyNameError(KeyFileError):
    """A key cannot be called that."""


def _raw(text: str) -> bytes:
    from zmq.utils import z85  # noqa: PLC0415 - who only asks for values needs no ZeroMQ

    return z85.decode(text)


def _is_key(_: object, __: object, text: str) -> None:
    try:
        if re.fullmatch(_Z85, text) and _raw(text):
            return
    except struct.error:  # five characters can say more than four bytes hold
        pass
    raise KeyFileError("a public key is 40 characters of Z85; copy it from: mbroker keys show")


@attrs.frozen
class PublicKey:
    """The half of a key that may be shown; raises KeyFileError when *text* is no key."""

    text: str = attrs.field(validator=_is_key)
    """Forty characters of Z85."""
    server: bool = False
    """Whether it was trusted as a broker's, to be dialled."""

    @property
    def raw(self) -> bytes:
        """The key's 32 bytes."""
        return _raw(self.text)

    @property
    def fingerprint(self) -> str:
        """The key's :func:`fingerprint`."""
        return fingerprint(self.raw)


@attrs.frozen
class KeyPair:
    """Who this end is."""

    name: str
    public: PublicKey
    secret: bytes = attrs.field(repr=False)
    """Forty characters of Z85; never print, log or send it."""


def fingerprint(raw: bytes) -> str:
    """Return SHA-256 of a key's bytes in groups of four hex digits, for people to compare."""
    digest = hashlib.sha256(raw).hexdigest()
    return " ".join(digest[i : i + 4] for i in range(0, len(digest), 4))


def default_folder() -> Path:
    """Return ``$MCHANNEL_KEYS`` when set, else ``/etc/mchannel/keys`` for root, else the user's own folder."""
    if named := os.environ.get("MCHANNEL_KEYS"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/etc/mchannel/keys")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "mchannel" / "keys"


def new(folder: Path, name: str, *, force: bool = False) -> KeyPair:
    """Make a key pair called *name*; with *force* in place of the one that is there.

    Peers that trust the replaced key refuse the new one until they are given it.
    """
    import zmq  # noqa: PLC0415

    check_name(name)
    public, secret = zmq.curve_keypair()
    key = KeyPair(name, PublicKey(public.decode()), secret)
    with _explained(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(folder) as at:
            try:
                _write(at, "identity.key", _file("secret", name, secret.decode()), replace=force)
            except FileExistsError:
                raise KeyFileError(f"{folder} has a key already; replace it with: mbroker keys new --force") from None
            _write(at, "identity.pub", _file("public", name, key.public.text), replace=True)
    return key


def own(folder: Path) -> KeyPair:
    """Return this end's key pair."""
    import zmq  # noqa: PLC0415

    with _explained(folder), _opened(folder) as at:
        kind, name, secret = _parse(_read(at, "identity.key", forbidden=0o077), "identity.key")
    if kind != "secret":
        raise KeyFileError(f"{folder}/identity.key is not a secret key; make one with: mbroker keys new --force")
    return KeyPair(name, PublicKey(zmq.curve_public(secret.encode()).decode()), secret.encode())


def show(folder: Path) -> str:
    """Return this end's public key as the text that :func:`trust` takes on the other side."""
    key = own(folder)
    return _file("public", key.name, key.public.text)


def trust(folder: Path, name: str, public_key_text: str, *, server: bool = False) -> PublicKey:
    """Let the holder of a public key connect, from its next try on, and call it *name*.

    With *server* it is also the key that this end expects where it dials without naming one.
    Trusting the same key again changes nothing; one name has one key and one key one name.
    """
    check_name(name)
    kind, _, text = _parse(public_key_text, "the text given")
    if kind == "secret":
        raise KeyFileError("that is a secret key, now exposed: replace it, and trust the text of: mbroker keys show")
    key = PublicKey(text, server)
    with _explained(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(folder), suppress(FileExistsError):
            (folder / "trusted").mkdir(mode=0o700)
        known = trusted(folder)
        if known.get(name) == key:
            return key
        if other := next((other for other, held in known.items() if other != name and held.text == text), None):
            raise KeyFileError(f"this key is trusted as {other} already; untrust {other} first")
        with _opened(folder / "trusted") as at:
            try:
                _write(at, f"{name}.pub", _file("server" if server else "public", name, text), replace=False)
            except FileExistsError:
                raise KeyFileError(f"{name} is trusted with another key or role; untrust it first") from None
    return key


def untrust(folder: Path, name: str) -> None:
    """Forget the key called *name*; a connection that stands goes on until it ends."""
    check_name(name)
    with _explained(folder), _opened(folder):
        try:
            with _opened(folder / "trusted") as at:
                os.unlink(f"{name}.pub", dir_fd=at)
                os.fsync(at)
        except FileNotFoundError:
            raise NoSuchKey(f"{folder} trusts no key called {name}; see: mbroker keys show --trusted") from None


def trusted(folder: Path) -> Mapping[str, PublicKey]:
    """Return the trusted keys by name, none when nothing was trusted yet.

    A damaged file among them is logged and left out: it locks out its owner, not everyone.
    """
    found: dict[str, PublicKey] = {}
    with _explained(folder), _opened(folder), suppress(FileNotFoundError), _opened(folder / "trusted") as at:
        for entry in sorted(os.listdir(at)):  # noqa: PTH208 - a descriptor has no path
            name = entry.removesuffix(".pub")
            if name == entry or not re.fullmatch(_NAME, name):
                continue
            try:
                kind, _, text = _parse(_read(at, entry, forbidden=0o022), entry)
                if kind == "secret":
                    raise KeyFileError(f"{entry} is a secret key")
                found[name] = PublicKey(text, kind == "server")
            except (KeyFileError, OSError) as error:
                _log.warning("%s/trusted: %s; it is not trusted", folder, error)
    return found


def check_name(name: str) -> None:
    """Raise KeyNameError when no key can be called *name*."""
    if not re.fullmatch(_NAME, name):
        raise KeyNameError(
            f"{name[:80]!r} is no name for a key; use 1 to 64 letters, digits, dots, dashes, underscores"
        )


def _file(kind: str, name: str, key: str) -> str:
    return f"# mchannel {kind} key of {name}\n{key}\n"


def _parse(text: str, where: str) -> tuple[str, str, str]:
    """Return the kind, the name and the key in *text*; a bare key counts as public."""
    match = _FILE.fullmatch(text) if len(text) <= _LIMIT else None
    if not match:
        raise KeyFileError(f"{where} is not a key: it has a header line and 40 characters of Z85")
    return match[1] or "public", match[2] or "", match[3]


@contextmanager
def _explained(folder: Path) -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NoSuchKey(f"{folder} has no key; make one with: mbroker keys new NAME") from None
    except OSError as error:
        raise KeyFileError(f"cannot use keys in {folder}: {error.strerror}") from None


@contextmanager
def _opened(folder: Path) -> Generator[int]:
    """Yield a descriptor of *folder*, which is ours alone: what was checked is what is used."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_private(str(folder), os.fstat(at), 0o077)
        yield at
    finally:
        os.close(at)


def _check_private(path: str, status: os.stat_result, forbidden: int) -> None:
    if status.st_uid != os.geteuid():
        raise KeyFileError(f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()} who runs this")
    if status.st_mode & forbidden:
        raise KeyFileError(f"{path} is open to other users; close it with: chmod go= {path}")


def _read(at: int, name: str, *, forbidden: int) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{name} is not a regular file")
        _check_private(name, status, forbidden)
        return os.read(fd, _LIMIT + 1).decode("ascii", "replace")
    finally:
        os.close(fd)


def _write(at: int, name: str, text: str, *, replace: bool) -> None:
    """Put a file in place in one step; raise FileExistsError when it is there and may not be replaced."""
    spare = f".{name}.{secrets.token_hex(8)}"
    fd = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
    try:
        with open(fd, "w", encoding="ascii") as file:  # noqa: PTH123 - a descriptor has no path
            file.write(text)
            file.flush()
            os.fsync(fd)
        if replace:
            os.rename(spare, name, src_dir_fd=at, dst_dir_fd=at)
        else:
            os.link(spare, name, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)
        os.fsync(at)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(spare, dir_fd=at)
