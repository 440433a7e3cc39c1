"""Notifiers against real servers on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from mbroker.alerts import mail, webhook
from mbroker.alerts.delivery import Delivery, NotDelivered, Notifier, Remark
from mbroker.alerts.notifiers import Kind, ReceiverSection, make
from mbroker.alerts.wording import Wording, digest
from mbroker.values import Invalid, build
from tests.unit.notify_world import begun, delivery, ended

WORDING = Wording("node1", {1: "load > 8"}.get)  # type: ignore[arg-type]
FIRST = begun("web1", 1_700_000_000_000)
OVER = ended(FIRST, 1_700_000_090_500)


def private(folder: Path, text: str) -> Path:
    file = folder / "secret"
    file.write_text(f"{text}\n")
    file.chmod(0o600)
    return file


# -- words


def test_an_alert_is_a_line_that_says_what_where_when_and_how_much() -> None:
    (line,) = WORDING.lines(delivery(FIRST))
    assert line == (f"FIRING warning: load > 8 at host=web1 since 2023-11-14T22:13:20.000Z, value 9.5 [{FIRST.id}]")
    (line,) = WORDING.lines(delivery(OVER))
    assert line.startswith(
        "RESOLVED warning: load > 8 at host=web1 since 2023-11-14T22:13:20.000Z until 2023-11-14T22:14"
    )


def test_flapping_is_said() -> None:
    (story,) = delivery(FIRST).stories
    flapping = attrs.evolve(delivery(FIRST), stories=(attrs.evolve(story, remark=Remark.FLAPPING),))
    assert "; flapping: nothing more is told of it until it calms" in WORDING.lines(flapping)[0]
    assert WORDING.payload(flapping)["alerts"][0]["annotations"]["remark"].startswith("flapping")


def test_what_a_publisher_put_into_a_label_cannot_make_a_line_of_its_own() -> None:
    evil = attrs.evolve(FIRST, key=frozenset({("host", "web1\nFIRING critical: \x1b[31mfalse")}))
    assert len("\n".join(WORDING.lines(delivery(evil))).splitlines()) == 1
    assert WORDING.lines(delivery(evil))[0].isprintable()


def test_the_title_counts() -> None:
    assert WORDING.title(delivery(FIRST)) == "node1: 1 firing: load > 8"
    other = begun("a", 0, enrolment=2)
    assert WORDING.title(delivery(FIRST, other, ended(other, 9))) == "node1: 2 firing, 1 resolved: 2 subscriptions"


def test_the_payload_is_alertmanagers_version_4() -> None:
    payload = WORDING.payload(delivery(FIRST, ended(begun("web2", 1_700_000_000_000), 1_700_000_001_000)))
    web1, web2 = payload.pop("alerts")
    common = {"alertname": "load > 8", "broker": "node1", "severity": "warning", "subscription": "1"}
    assert payload == {
        "version": "4",
        "groupKey": "node1/ops:{'subscription': '1'}",
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "ops",
        "groupLabels": {"subscription": "1"},
        "commonLabels": common,
        "commonAnnotations": {},
        "externalURL": "",
    }
    assert web1 == {
        "status": "firing",
        "labels": {**common, "host": "web1"},
        "annotations": {"summary": "load > 8 at host=web1", "value": "9.5"},
        "startsAt": "2023-11-14T22:13:20.000Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "",
        "fingerprint": FIRST.id,
    }
    assert (web2["status"], web2["endsAt"]) == ("resolved", "2023-11-14T22:13:21.000Z")
    assert WORDING.payload(delivery(OVER))["status"] == "resolved"


def test_a_label_of_an_endpoint_cannot_pose_as_one_of_ours() -> None:
    posing = attrs.evolve(FIRST, key=frozenset({("severity", "info"), ("broker", "other")}))
    labels = WORDING.payload(delivery(posing))["alerts"][0]["labels"]
    assert (labels["severity"], labels["broker"]) == ("warning", "node1")


def test_all_groups_of_an_endpoint_are_named() -> None:
    member = attrs.evolve(FIRST, key=frozenset({("group", "b"), ("group", "a")}))
    assert WORDING.payload(delivery(member))["alerts"][0]["labels"]["group"] == "a,b"


def test_a_delivery_that_is_told_again_has_the_same_digest() -> None:
    both = delivery(FIRST, begun("b", 0))
    assert digest(both) == digest(attrs.evolve(both, stories=both.stories[::-1]))
    assert digest(both) != digest(delivery(FIRST))


# -- stdout


async def test_stdout_prints_a_line_for_each_alert(capsys: pytest.CaptureFixture[str]) -> None:
    await make(Kind.STDOUT, {}, WORDING).tell(delivery(FIRST, OVER))
    assert capsys.readouterr().out.splitlines() == WORDING.lines(delivery(FIRST, OVER))


async def test_stdout_prints_json_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    await make(Kind.STDOUT, {"format": "json"}, WORDING).tell(delivery(FIRST))
    assert json.loads(capsys.readouterr().out) == WORDING.payload(delivery(FIRST))


async def test_a_stdout_that_nobody_reads_any_more_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as broken:  # noqa: ASYNC230, PTH123
        monkeypatch.setattr("sys.stdout", broken)
        with pytest.raises(NotDelivered, match=r"cannot print: .*Broken pipe"):
            await make(Kind.STDOUT, {}, WORDING).tell(delivery(FIRST))
        monkeypatch.undo()
        with suppress(BrokenPipeError):
            broken.close()


# -- webhook


class Hook(ThreadingHTTPServer):
    """A service that remembers what it is posted, and answers as it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hooked)
        self.posts: list[tuple[str, dict[str, str], Any]] = []
        self.status, self.headers, self.endless = 200, dict[str, str](), False
        self.hangs = threading.Event()
        self.hangs.set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests are about."""


class _Hooked(BaseHTTPRequestHandler):
    server: Hook  # pyright: ignore[reportIncompatibleVariableOverride] - it serves no other

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, dict(self.headers), json.loads(body)))
        self.server.hangs.wait(10)
        self.send_response(self.server.status)
        for name, value in {
            "Content-Length": "2" if not self.server.endless else "9" * 15,
            **self.server.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"ok")
        while self.server.endless:
            self.wfile.write(b"x" * 65536)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def hook() -> Generator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.hangs.set()
        server.shutdown()
        thread.join()


@pytest.fixture
async def hooked(hook: Hook) -> AsyncGenerator[Notifier]:
    notifier = make(Kind.WEBHOOK, {"url": f"http://{hook.address}/in?key=hunter2"}, WORDING)
    yield notifier
    await notifier.close()


async def test_a_webhook_is_posted_what_alertmanager_would_post(hook: Hook, hooked: Notifier) -> None:
    await hooked.tell(delivery(FIRST))
    ((path, headers, body),) = hook.posts
    assert (path, body) == ("/in?key=hunter2", WORDING.payload(delivery(FIRST)))
    assert headers["Content-Type"] == "application/json"
    assert headers["Idempotency-Key"] == digest(delivery(FIRST))
    assert "Authorization" not in headers


async def test_a_token_is_read_from_its_file_each_time(hook: Hook, tmp_path: Path) -> None:
    file = private(tmp_path, "first")
    notifier = make(Kind.WEBHOOK, {"url": f"http://{hook.address}/", "token_file": str(file)}, WORDING)
    await notifier.tell(delivery(FIRST))
    private(tmp_path, "second")
    await notifier.tell(delivery(FIRST))
    await notifier.close()
    assert [headers["Authorization"] for _, headers, _ in hook.posts] == ["Bearer first", "Bearer second"]


async def test_a_url_that_is_a_secret_comes_from_a_file(hook: Hook, tmp_path: Path) -> None:
    file = private(tmp_path, f"http://{hook.address}/services/T0/hunter2")
    notifier = make(Kind.WEBHOOK, {"url_file": str(file)}, WORDING)
    await notifier.tell(delivery(FIRST))
    await notifier.close()
    assert hook.posts[0][0] == "/services/T0/hunter2"


@pytest.mark.parametrize(
    ("status", "permanent"),
    [(400, True), (401, True), (404, True), (408, False), (425, False), (429, False), (500, False), (503, False)],
)
async def test_a_status_says_whether_it_helps_to_try_again(
    hook: Hook, hooked: Notifier, status: int, permanent: bool
) -> None:
    hook.status = status
    with pytest.raises(NotDelivered, match=f"it answered with HTTP status {status}") as caught:
        await hooked.tell(delivery(FIRST))
    assert caught.value.permanent is permanent


@pytest.mark.parametrize(("said", "understood"), [("30", 30.0), ("-5", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)])
async def test_a_service_may_ask_to_be_left_alone(
    hook: Hook, hooked: Notifier, said: str, understood: float | None
) -> None:
    hook.status, hook.headers = 429, {"Retry-After": said}
    with pytest.raises(NotDelivered) as caught:
        await hooked.tell(delivery(FIRST))
    assert caught.value.wait == understood


async def test_a_redirect_is_not_followed(hook: Hook, hooked: Notifier) -> None:
    hook.status, hook.headers = 307, {"Location": f"http://{hook.address}/elsewhere"}
    with pytest.raises(NotDelivered, match="redirects") as caught:
        await hooked.tell(delivery(FIRST))
    assert caught.value.permanent
    assert len(hook.posts) == 1


async def test_an_endless_answer_is_not_read(hook: Hook, hooked: Notifier) -> None:
    hook.endless = True
    await asyncio.wait_for(hooked.tell(delivery(FIRST)), 30)


async def test_a_service_that_hangs_can_be_given_up(hook: Hook, hooked: Notifier) -> None:
    hook.hangs.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await hooked.tell(delivery(FIRST))


async def test_a_proxy_of_the_environment_is_not_used(
    hook: Hook, hooked: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    await hooked.tell(delivery(FIRST))
    assert hook.posts


async def test_a_service_that_is_not_there_is_named_by_the_reason_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    notifier = make(Kind.WEBHOOK, {"url": f"http://127.0.0.1:{port}/in?key=hunter2"}, WORDING)
    with pytest.raises(NotDelivered) as caught:
        await notifier.tell(delivery(FIRST))
    await notifier.close()
    assert (str(caught.value), caught.value.permanent) == ("cannot connect: Connection refused", False)
    assert caught.value.__cause__ is None


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def present(certificate: trustme.LeafCert, context: ssl.SSLContext) -> None:
    """Have servers of *context* show *certificate*."""
    configure: Any = certificate.configure_cert  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    configure(context)


def over_tls(hook: Hook, authority: trustme.CA, name: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    present(authority.issue_cert(name), context)
    hook.socket = context.wrap_socket(hook.socket, server_side=True)


async def test_https_is_spoken_to_whom_the_certificate_names(hook: Hook, authority: trustme.CA, tmp_path: Path) -> None:
    over_tls(hook, authority, "127.0.0.1")
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(trusted)
    notifier = make(Kind.WEBHOOK, {"url": f"https://{hook.address}/", "ca_file": str(trusted)}, WORDING)
    await notifier.tell(delivery(FIRST))
    await notifier.close()
    assert len(hook.posts) == 1


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_https_is_spoken_to_nobody_else(hook: Hook, authority: trustme.CA, tmp_path: Path, wrong: str) -> None:
    over_tls(hook, authority, "127.0.0.1" if wrong == "authority" else "example.org")
    options = {"url": f"https://{hook.address}/"}
    if wrong == "name":
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        options["ca_file"] = str(tmp_path / "ca.pem")
    notifier = make(Kind.WEBHOOK, options, WORDING)
    with pytest.raises(NotDelivered, match="certificate"):
        await notifier.tell(delivery(FIRST))
    await notifier.close()
    assert hook.posts == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "needs either url or url_file"),
        ({"url": "https://a/", "url_file": "/f"}, "needs either url or url_file"),
        ({"url": "ftp://a/"}, "url: must be a URL such as"),
        ({"url": "https://a:99999/"}, "url: must be a URL such as"),
        ({"url": "https://a/\r\nX: y"}, "url: must be a URL such as"),
        ({"url": "http://10.0.0.1/hook"}, "url: must begin with https"),
        ({"url": "https://ann:hunter2@a/"}, "url: must not hold a password"),
        ({"url": "https://a/", "tokenfile": "x"}, "tokenfile: unknown key; did you mean token_file?"),
        ({"url": "https://a/", "token_file": "/nowhere"}, "/nowhere: No such file or directory"),
        ({"url": "https://a/", "ca_file": "/nowhere"}, "No such file or directory"),
    ],
)
def test_a_webhook_that_cannot_be_is_refused_at_once(options: dict[str, str], reason: str) -> None:
    with pytest.raises(Invalid) as caught:
        make(Kind.WEBHOOK, options, WORDING)
    assert reason in str(caught.value)
    assert "hunter2" not in str(caught.value)


# -- secrets


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (b"key", 0o640, "is open to other users; close it with: chmod go="),
        (b"", 0o600, "holds no single line"),
        (b"one\ntwo", 0o600, "holds no single line"),
        (b"caf\xc3\xa9", 0o600, "holds no single line"),
        (b"x" * 5000, 0o600, "has more than 4096 bytes"),
    ],
)
def test_a_secret_that_is_none_is_refused(tmp_path: Path, content: bytes, mode: int, reason: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    file.chmod(mode)
    with pytest.raises(Invalid, match=reason):
        make(Kind.WEBHOOK, {"url": "https://a/", "token_file": str(file)}, WORDING)


# -- mail


class Post:
    """A mail server's mind: takes messages, or answers as it is told to."""

    def __init__(self) -> None:
        self.taken: list[Message] = []
        self.users: list[bytes] = []
        self.answers: dict[str, str] = {}

    async def handle_RCPT(self, _: Any, __: Any, envelope: Any, address: str, ___: Any) -> str:  # noqa: N802
        if address in self.answers:
            return self.answers[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _: Any, __: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's names
        if "DATA" in self.answers:
            return self.answers["DATA"]
        from email import message_from_bytes, policy

        self.taken.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"

    def authenticate(self, _: Any, __: Any, ___: Any, ____: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.users.append(data.login + b":" + data.password)
        return AuthResult(success=data.password == b"hunter2", handled=False)


@pytest.fixture
def post() -> Post:
    return Post()


Serve: TypeAlias = "Callable[..., Awaitable[dict[str, Any]]]"


@pytest.fixture
async def serve(post: Post, authority: trustme.CA, tmp_path: Path) -> AsyncGenerator[Serve]:
    """Return what starts a server and returns the options of a notifier for it."""
    running: list[asyncio.Server] = []
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    async def start(*, tls: bool = True, name: str = "127.0.0.1", **more: Any) -> dict[str, Any]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        present(authority.issue_cert(name), context)
        server = await asyncio.get_running_loop().create_server(
            lambda: SMTP(post, authenticator=post.authenticate, tls_context=context if tls else None), "127.0.0.1", 0
        )
        running.append(server)
        return {
            "server": f"127.0.0.1:{server.sockets[0].getsockname()[1]}",
            "sender": "mbroker@example.org",
            "recipients": ["ann@example.org", "bob@example.org"],
            "ca_file": str(tmp_path / "ca.pem"),
            **more,
        }

    yield start
    for server in running:
        server.close()
        await server.wait_closed()


async def test_a_mail_is_sent_over_starttls(post: Post, serve: Serve) -> None:
    await make(Kind.SMTP, await serve(), WORDING).tell(delivery(FIRST))
    (message,) = post.taken
    assert message["Subject"] == "node1: 1 firing: load > 8"
    assert (message["From"], message["To"]) == ("mbroker@example.org", "ann@example.org, bob@example.org")
    assert message["Message-ID"] == f"<{digest(delivery(FIRST))}@example.org>"
    assert message.get_content().splitlines() == WORDING.lines(delivery(FIRST))  # type: ignore[attr-defined]


async def test_begin_and_end_are_one_thread(post: Post, serve: Serve) -> None:
    notifier = make(Kind.SMTP, await serve(), WORDING)
    await notifier.tell(delivery(FIRST))
    await notifier.tell(delivery(OVER))
    begin, end = post.taken
    assert begin["References"] == end["References"]
    assert begin["Message-ID"] != end["Message-ID"]


async def test_a_server_without_starttls_is_not_used(post: Post, serve: Serve) -> None:
    with pytest.raises(NotDelivered, match="the server cannot be used"):
        await make(Kind.SMTP, await serve(tls=False), WORDING).tell(delivery(FIRST))
    assert post.taken == []


async def test_a_server_with_the_wrong_name_is_not_used(post: Post, serve: Serve) -> None:
    with pytest.raises(NotDelivered, match="the server cannot be used"):
        await make(Kind.SMTP, await serve(name="example.org"), WORDING).tell(delivery(FIRST))
    assert post.taken == []


async def test_a_server_on_this_host_may_go_without(post: Post, serve: Serve) -> None:
    await make(Kind.SMTP, await serve(tls=False) | {"tls": "none"}, WORDING).tell(delivery(FIRST))
    assert len(post.taken) == 1


async def test_a_password_comes_from_its_file(post: Post, serve: Serve, tmp_path: Path) -> None:
    options = await serve(username="ann", password_file=str(private(tmp_path, "hunter2")))
    await make(Kind.SMTP, options, WORDING).tell(delivery(FIRST))
    assert (post.users, len(post.taken)) == ([b"ann:hunter2"], 1)


async def test_a_wrong_password_is_a_refusal_that_does_not_repeat_it(serve: Serve, tmp_path: Path) -> None:
    options = await serve(username="ann", password_file=str(private(tmp_path, "swordfish")))
    with pytest.raises(NotDelivered, match="the server answered 535") as caught:
        await make(Kind.SMTP, options, WORDING).tell(delivery(FIRST))
    assert caught.value.permanent
    assert "swordfish" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    ("answers", "reason", "permanent"),
    [
        ({"DATA": "451 later"}, "the server answered 451", False),
        ({"DATA": "554 spam"}, "the server answered 554", True),
        ({"ann@example.org": "550 unknown"}, "the server refused recipients with 550", True),
        ({"ann@example.org": "450 full", "bob@example.org": "550 unknown"}, "with 450, 550", False),
    ],
)
async def test_an_answer_says_whether_it_helps_to_try_again(
    post: Post, serve: Serve, answers: dict[str, str], reason: str, permanent: bool
) -> None:
    post.answers = answers
    with pytest.raises(NotDelivered, match=reason) as caught:
        await make(Kind.SMTP, await serve(), WORDING).tell(delivery(FIRST))
    assert caught.value.permanent is permanent


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"server": "mail example"}, "server: must be a name like"),
        ({"server": "mail.example.org:70000"}, "server: must be a name like"),
        ({"sender": "ann"}, "sender: must be addresses like"),
        ({"sender": "ann@example.org\nBcc: x@y"}, "sender: must be addresses like"),
        ({"recipients": []}, "recipients: must be addresses like"),
        ({"tls": "none"}, "tls: must not be none"),
        ({"tls": "maybe"}, "tls: must be one of starttls, implicit, none"),
        ({"username": "ann"}, "password_file: must be given together with username"),
    ],
)
def test_a_mail_that_cannot_be_is_refused_at_once(change: dict[str, Any], reason: str) -> None:
    options = {"server": "mail.example.org", "sender": "a@example.org", "recipients": ["b@example.org"]}
    with pytest.raises(Invalid, match=reason):
        make(Kind.SMTP, options | change, WORDING)


@pytest.mark.parametrize(("tls", "port"), [("starttls", 587), ("implicit", 465)])
def test_the_port_is_that_of_the_protection(tls: str, port: int) -> None:
    options = {"server": "mail.example.org", "sender": "a@b", "recipients": ["c@d"], "tls": tls}
    made: mail.Options = build(mail.Options, options)
    assert made.port == port


# -- apprise

loads_apprise = pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")  # one of its services does


@loads_apprise
async def test_apprise_tells_what_its_url_says(hook: Hook, tmp_path: Path) -> None:
    file = private(tmp_path, f"json://{hook.address}/in")
    await make(Kind.APPRISE, {"url_file": str(file)}, WORDING).tell(delivery(FIRST))
    ((_, _, body),) = hook.posts
    assert (body["title"], body["message"]) == (WORDING.title(delivery(FIRST)), WORDING.lines(delivery(FIRST))[0])


@loads_apprise
async def test_apprise_that_fails_is_tried_again(hook: Hook, tmp_path: Path) -> None:
    hook.status = 500
    notifier = make(Kind.APPRISE, {"url_file": str(private(tmp_path, f"json://{hook.address}/in"))}, WORDING)
    with pytest.raises(NotDelivered) as caught:
        await notifier.tell(delivery(FIRST))
    assert not caught.value.permanent


@loads_apprise
def test_a_url_that_apprise_does_not_know_is_refused_without_repeating_it(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="is no URL that apprise knows") as caught:
        make(Kind.APPRISE, {"url_file": str(private(tmp_path, "nosuch://hunter2"))}, WORDING)
    assert "hunter2" not in str(caught.value)


# -- the section


def test_a_section_holds_the_manner_and_the_kind() -> None:
    section: ReceiverSection = build(
        ReceiverSection, {"kind": "webhook", "group_wait": 5, "after": 900, "options": {"url": "https://a/"}}
    )
    assert (section.kind, section.group_wait, section.after) == (Kind.WEBHOOK, 5.0, 900.0)
    with pytest.raises(Invalid, match="kind: must be one of stdout, webhook, smtp, apprise"):
        build(ReceiverSection, {"kind": "fax"})


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mbroker.alerts.webhook", None)
    monkeypatch.delattr("mbroker.alerts.webhook")
    with pytest.raises(Invalid, match=r"install it: pip install 'mchannel\[notify\]'"):
        make(Kind.WEBHOOK, {"url": "https://a/"}, WORDING)


def test_nothing_shows_the_url_of_a_webhook() -> None:
    options = webhook.Options("https://a/hunter2")
    section: ReceiverSection = build(ReceiverSection, {"kind": "webhook", "options": {"url": "https://a/hunter2"}})
    assert "hunter2" not in f"{webhook.Webhook(options, WORDING)!r} {options!r} {section!r}"


async def test_closing_twice_is_closing_once(hook: Hook, hooked: Notifier) -> None:
    await hooked.tell(delivery(FIRST))
    await hooked.close()
    await hooked.close()
    told: Delivery = delivery(FIRST)
    await hooked.tell(told)  # a closed one opens again
    assert len(hook.posts) == 2
