"""The notifiers that come along, by kind, and those that need no more than a page."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mbroker.values import Fault, Invalid, build

from .delivery import Delivery, Manner, NotDelivered, Notifier
from .trust import read_secret
from .wording import Wording

if TYPE_CHECKING:
    import apprise

__all__ = ["Apprise", "Format", "Kind", "ReceiverSection", "Stdout", "make"]


class Kind(Enum):
    """How receivers can be told."""

    STDOUT = "stdout"
    WEBHOOK = "webhook"
    SMTP = "smtp"
    APPRISE = "apprise"


@attrs.frozen(kw_only=True)
class ReceiverSection(Manner):
    """``[alerts.receivers.NAME]``: how NAME is told, and everything of :class:`~.delivery.Manner`."""

    kind: Kind
    options: dict[str, Any] = attrs.field(factory=dict[str, Any], repr=False)
    """What the kind needs to know; see the options of :mod:`.webhook`, :mod:`.mail` and of this module."""


def make(kind: Kind, options: Mapping[str, Any], wording: Wording) -> Notifier:
    """Return the notifier of *kind*; raise :exc:`~mbroker.values.Invalid` when *options* are not what it takes."""
    try:
        match kind:
            case Kind.STDOUT:
                return Stdout(build(StdoutOptions, options), wording)
            case Kind.WEBHOOK:
                from . import webhook  # noqa: PLC0415 - needs what not every host has

                return webhook.Webhook(build(webhook.Options, options), wording)
            case Kind.SMTP:
                from . import mail  # noqa: PLC0415

                return mail.Mail(build(mail.Options, options), wording)
            case Kind.APPRISE:
                return Apprise(build(AppriseOptions, options), wording)
    except ModuleNotFoundError as missing:
        reason = f"{kind.value} needs {missing.name}; install it: pip install 'mchannel[notify]'"
        raise Invalid((Fault((), reason),)) from None
    except (NotDelivered, OSError) as error:
        raise Invalid((Fault((), str(error)),)) from None


# -- stdout


class Format(Enum):
    """How alerts are printed."""

    LINE = "line"
    """One line each, for people."""
    JSON = "json"
    """One line for each delivery: what a webhook is told."""


@attrs.frozen
class StdoutOptions:
    """How."""

    format: Format = Format.LINE


@attrs.frozen
class Stdout:
    """A notifier that prints: to the terminal, or to the journal of a service."""

    _options: StdoutOptions
    _wording: Wording

    async def tell(self, delivery: Delivery) -> None:
        """Print *delivery*."""
        if self._options.format is Format.JSON:
            text = json.dumps(self._wording.payload(delivery))
        else:
            text = "\n".join(self._wording.lines(delivery))
        try:
            await asyncio.to_thread(_print, f"{text}\n")  # whoever reads may be slow
        except (OSError, ValueError) as error:
            raise NotDelivered(f"cannot print: {error}") from None

    async def close(self) -> None:
        """It is not ours to close."""


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


# -- apprise


@attrs.frozen
class AppriseOptions:
    """Where to."""

    url_file: Path
    """A file with one URL of apprise, such as ``ntfys://ntfy.example.org/topic``: most of them are secrets."""


class Apprise:
    """A notifier for all the services that apprise knows."""

    def __init__(self, options: AppriseOptions, wording: Wording) -> None:
        """Raise :exc:`~.delivery.NotDelivered` when the file cannot be used, ImportError without apprise."""
        self._options = options
        self._wording = wording
        self._service()

    async def tell(self, delivery: Delivery) -> None:
        """Send *delivery*; apprise tells no reason of a failure, so that each one is tried again."""
        body, title = "\n".join(self._wording.lines(delivery)), self._wording.title(delivery)
        if not await self._service().async_notify(body=body, title=title, body_format="text"):
            raise NotDelivered("apprise could not tell the service")

    async def close(self) -> None:
        """Nothing is open between messages."""

    def _service(self) -> apprise.Apprise:
        import apprise  # noqa: PLC0415 - loads hundreds of services, for those who use one

        made = apprise.Apprise()
        add: Callable[[str], bool] = made.add  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if not add(read_secret(self._options.url_file)):
            raise NotDelivered(f"the text in {self._options.url_file} is no URL that apprise knows")
        return made
