"""Tells a service over HTTPS, in the JSON of Alertmanager's webhooks."""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import attrs

from .delivery import Delivery, NotDelivered
from .trust import is_loopback, read_secret
from .wording import Wording, digest

__all__ = ["Options", "Webhook"]

_ANSWER = 4096  # bytes of an answer that are read, so that its connection can be used again
_TRANSIENT = frozenset([408, 425, 429])


def _check_url(url: str) -> str:
    """Return *url*; raise ValueError, which does not repeat it, unless it is one that may be used."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    if parts.scheme not in ("https", "http") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be a URL such as https://alerts.example.org/hook")
    if parts.username is not None:
        raise ValueError("must not hold a password; give token_file, or all of it in url_file")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError("must begin with https: http, which anybody on the way reads, is for this host alone")
    return url


def _url(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value:
        try:
            _check_url(value)
        except ValueError as error:
            raise ValueError(f"'{attribute.name}' {error}") from None


@attrs.frozen
class Options:
    """Which service."""

    url: str = attrs.field(default="", validator=_url, repr=False)
    url_file: Path | None = None
    """A file with the URL, when knowing it is all that it takes to speak there."""
    token_file: Path | None = None
    """A file with a token for the header ``Authorization: Bearer``."""
    ca_file: Path | None = None
    """Certificates to trust instead of the system's."""

    def __attrs_post_init__(self) -> None:
        """Refuse none and two."""
        if bool(self.url) == bool(self.url_file):
            raise ValueError("needs either url or url_file")


class Webhook:
    """A notifier that posts to a URL. It follows no redirect, keeps no cookie and knows no proxy."""

    def __init__(self, options: Options, wording: Wording) -> None:
        """Raise :exc:`~.delivery.NotDelivered` or OSError when a file that *options* name cannot be used."""
        self._options = options
        self._wording = wording
        self._tls = ssl.create_default_context(cafile=options.ca_file)
        self._session: aiohttp.ClientSession | None = None
        self._request()

    async def tell(self, delivery: Delivery) -> None:
        """Post *delivery*; a status of 2xx is success."""
        url, headers = self._request()
        headers["Idempotency-Key"] = digest(delivery)
        body = json.dumps(self._wording.payload(delivery)).encode()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
            )
        try:
            async with self._session.post(
                url, data=body, headers=headers, ssl=self._tls, allow_redirects=False
            ) as answer:
                await answer.content.read(_ANSWER)
                _judge(answer.status, answer.headers.get("Retry-After", ""))
        except aiohttp.ClientConnectorCertificateError:
            raise NotDelivered("its certificate is not one that this host trusts; see ca_file") from None
        except aiohttp.ClientConnectorError as error:
            number, text = error.os_error.errno or 0, error.os_error.strerror
            raise NotDelivered(f"cannot connect: {os.strerror(number) if number > 0 else text}") from None
        except (aiohttp.ClientError, OSError) as error:  # whose texts may hold the URL
            raise NotDelivered(f"the connection failed: {type(error).__name__}") from None

    async def close(self) -> None:
        """Let go of the connections. Idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _request(self) -> tuple[str, dict[str, Any]]:
        """Return the URL and the headers, with the secrets that are in force now."""
        options, headers = self._options, {"Content-Type": "application/json", "User-Agent": "mbroker"}
        url = options.url
        if options.url_file:
            try:
                url = _check_url(read_secret(options.url_file))
            except ValueError as error:
                raise NotDelivered(f"the text in {options.url_file} {error}") from None
        if options.token_file:
            headers["Authorization"] = f"Bearer {read_secret(options.token_file)}"
        return url, headers


def _judge(status: int, retry_after: str) -> None:
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise NotDelivered(f"it redirects (HTTP status {status}); give the URL that it leads to", permanent=True)
    wait = float(retry_after) if retry_after.isdecimal() and len(retry_after) < 10 else None
    permanent = status < 500 and status not in _TRANSIENT
    raise NotDelivered(f"it answered with HTTP status {status}", permanent=permanent, wait=wait)
