"""Tells people by mail."""

from __future__ import annotations

import hashlib
import re
import ssl
from email.message import EmailMessage
from email.utils import formatdate
from enum import Enum
from pathlib import Path
from typing import Any

import aiosmtplib
import attrs

from .delivery import Delivery, NotDelivered
from .trust import is_loopback, read_secret
from .wording import Wording, digest

__all__ = ["Mail", "Options", "Tls"]

_ADDRESS = re.compile(r"[!-;=?A-~]{1,64}@[A-Za-z0-9.\[\]:-]{1,255}")
_SERVER = re.compile(r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?")


class Tls(Enum):
    """How the connection to the server is protected."""

    STARTTLS = "starttls"
    """From the first command on; a server that cannot is not used."""
    IMPLICIT = "implicit"
    """From the first byte on."""
    NONE = "none"
    """Not at all: for a server on this host."""


def _server(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    match = _SERVER.fullmatch(value)
    if not match or not 0 < int(match["port"] or 1) < 65536:
        raise ValueError(f"'{attribute.name}' must be a name like mail.example.org or mail.example.org:587")


def _addresses(_: object, attribute: attrs.Attribute[Any], value: str | tuple[str, ...]) -> None:
    addresses = (value,) if isinstance(value, str) else value
    if not 1 <= len(addresses) <= 50 or not all(map(_ADDRESS.fullmatch, addresses)):
        raise ValueError(f"'{attribute.name}' must be addresses like ann@example.org")


@attrs.frozen
class Options:
    """From whom, to whom, and over which server."""

    server: str = attrs.field(validator=_server)
    """``HOST[:PORT]``; by default port 587, with ``implicit`` 465, with ``none`` 25."""
    sender: str = attrs.field(validator=_addresses)
    recipients: tuple[str, ...] = attrs.field(validator=_addresses)
    tls: Tls = Tls.STARTTLS
    username: str = ""
    password_file: Path | None = None
    ca_file: Path | None = None
    """Certificates to trust instead of the system's."""

    def __attrs_post_init__(self) -> None:
        """Refuse what would show a password, or has none."""
        if self.tls is Tls.NONE and not is_loopback(self.host):
            raise ValueError("'tls' must not be none: anybody on the way would read along; none is for this host alone")
        if bool(self.username) != bool(self.password_file):
            raise ValueError("'password_file' must be given together with username")

    @property
    def host(self) -> str:
        """The server's name."""
        match = _SERVER.fullmatch(self.server)
        assert match
        return match["host"].strip("[]")

    @property
    def port(self) -> int:
        """The server's port."""
        match = _SERVER.fullmatch(self.server)
        assert match
        return int(match["port"] or {Tls.STARTTLS: 587, Tls.IMPLICIT: 465, Tls.NONE: 25}[self.tls])


class Mail:
    """A notifier that sends one message a delivery. Those of one group form a thread."""

    def __init__(self, options: Options, wording: Wording) -> None:
        """Raise :exc:`~.delivery.NotDelivered` or OSError when a file that *options* name cannot be used."""
        self._options = options
        self._wording = wording
        self._tls = ssl.create_default_context(cafile=options.ca_file)
        self._password()

    async def tell(self, delivery: Delivery) -> None:
        """Send *delivery*; success is that the server takes it for every recipient."""
        options = self._options
        try:
            refused, _ = await aiosmtplib.send(
                self._message(delivery),
                sender=options.sender,
                recipients=list(options.recipients),
                hostname=options.host,
                port=options.port,
                username=options.username or None,
                password=self._password(),
                use_tls=options.tls is Tls.IMPLICIT,
                start_tls=options.tls is Tls.STARTTLS,
                tls_context=None if options.tls is Tls.NONE else self._tls,
                timeout=None,  # the teller's holds for all of it
            )
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise _refusal({refusal.code for refusal in error.recipients}) from None
        except aiosmtplib.SMTPResponseException as error:
            raise NotDelivered(f"the server answered {error.code}", permanent=500 <= error.code < 600) from None
        except (aiosmtplib.SMTPException, OSError) as error:  # whose texts may repeat what was sent
            raise NotDelivered(f"the server cannot be used: {type(error).__name__}") from None
        if refused:
            raise _refusal({answer.code for answer in refused.values()})

    async def close(self) -> None:
        """Nothing is open between messages."""

    def _password(self) -> str | None:
        return read_secret(self._options.password_file) if self._options.password_file else None

    def _message(self, delivery: Delivery) -> EmailMessage:
        options, wording = self._options, self._wording
        domain = options.sender.rpartition("@")[2]
        thread = hashlib.blake2b(repr((wording.host, delivery.group)).encode(), digest_size=10).hexdigest()
        message = EmailMessage()
        message["From"] = options.sender
        message["To"] = ", ".join(options.recipients)
        message["Subject"] = wording.title(delivery)
        message["Date"] = formatdate()
        message["Message-ID"] = f"<{digest(delivery)}@{domain}>"  # the same when it is sent again
        message["References"] = f"<{thread}@{domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content("\n".join(wording.lines(delivery)) + "\n")
        return message


def _refusal(codes: set[int]) -> NotDelivered:
    """Return what to say of recipients that were refused; tried again if that can help one of them."""
    said = ", ".join(map(str, sorted(codes)))
    return NotDelivered(f"the server refused recipients with {said}", permanent=min(codes) >= 500)
