from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import attrs
import pytest

from mbroker.action import Notify, SetFrequency
from mbroker.broker import Broker, Hosted
from mbroker.host import Domain, Host
from mbroker.isolated import CPU_SECONDS
from mbroker.isolation import IsolatedPolicy, IsolationError
from mbroker.seccomp import is_supported
from mchannel.event import Event
from tests.unit.processes import is_running

pytestmark = pytest.mark.skipif(not is_supported(), reason="no table of system calls for this machine")

EVENT = Event("sla.epoch", "web1", 0.5, 12.5, {"requests": 10})
HOST = Host("h1", domains={"web1": Domain("web1", 2)})

Start = Callable[..., IsolatedPolicy]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Generator[Start]:
    """Start a policy whose ``decide`` has the body given, in a folder that nobody may read too."""
    folder = Path(tempfile.mkdtemp(prefix="mbroker-test-"))
    folder.chmod(0o755)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    begun: list[IsolatedPolicy] = []

    def begin(
        body: str, *, top: str = "", topics: str = "('sla.',)", deadline: float = 5.0, **options: int
    ) -> IsolatedPolicy:
        name = f"policy_{len(begun)}"
        text = (
            f"import os, sys, time, socket, threading\n"
            f"from mbroker.action import Notify, SetFrequency\n{textwrap.dedent(top)}\n"
            f"class Policy:\n"
            f"    topics = {topics}\n"
            f"    def __init__(self, by=1): self.by, self.count = by, 0\n"
            f"    def decide(self, event, host):\n{textwrap.indent(textwrap.dedent(body), ' ' * 8)}\n"
        )
        (folder / f"{name}.py").write_text(text)
        policy = IsolatedPolicy(f"{name}:Policy", options, deadline=deadline, memory=256 << 20)
        begun.append(policy)
        return policy

    yield begin
    for policy in begun:
        policy.close()
    shutil.rmtree(folder)


def said(policy: IsolatedPolicy) -> str:
    """Return what the policy found out, as the text of its notification."""
    (action,) = policy.decide(EVENT, HOST)
    assert isinstance(action, Notify)
    return action.text


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def until_ready(policy: IsolatedPolicy) -> None:
    for _ in range(200):
        try:
            list(policy.decide(EVENT, HOST))
        except IsolationError as error:
            if "started again" not in str(error):
                return
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the child did not come back")


def test_an_isolated_policy_decides_as_it_would_in_process(start: Start) -> None:
    policy = start("yield SetFrequency(event.source, step=self.by * host.level('web1'))", by=-1)
    assert policy.topics == ("sla.",)
    assert policy.decide(EVENT, HOST) == (SetFrequency("web1", step=-2),)
    assert policy.decide(EVENT, HOST.with_level("web1", 4)) == (SetFrequency("web1", step=-4),)


def test_it_sees_the_whole_event(start: Start) -> None:
    policy = start("yield Notify('web1', repr((event.topic, event.value, event.at, event.detail)))")
    assert said(policy) == "('sla.epoch', 0.5, 12.5, {'requests': 10})"


def test_a_policy_that_raises_says_why_and_keeps_its_state(start: Start) -> None:
    policy = start(
        """
        self.count += 1
        if self.count == 1:
            raise ZeroDivisionError("by hand")
        yield Notify("web1", str(self.count))
        """
    )
    with pytest.raises(IsolationError, match="ZeroDivisionError: by hand"):
        policy.decide(EVENT, HOST)
    assert said(policy) == "2"
    assert policy.restarts == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_it_has_no_credentials(start: Start, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(partial(os.setgroups, os.getgroups()))
    os.setgroups([4, 27])
    policy = start(
        "yield Notify('web1', CREDENTIALS)",
        top="""
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        CREDENTIALS = "|".join(" ".join(status[key].split()) for key in ("Uid", "Gid", "Groups", "CapEff", "CapPrm"))
        """,
    )
    assert said(policy) == "65534 65534 65534 65534|65534 65534 65534 65534||0000000000000000|0000000000000000"


def test_it_has_no_environment_and_only_the_socket_open(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCHANNEL_SECRET", "s3cret")
    secret = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(secret, True)
    policy = start(
        "yield Notify('web1', FOUND)",
        top="""
        held = [os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}")]
        FOUND = f"{'MCHANNEL_SECRET' in os.environ} {sorted(held)}"
        """,
    )
    os.close(secret)
    assert said(policy) == "False ['/dev/null', '/dev/null', 'socket']"


@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "threading.Thread(target=print).start()",
        "socket.socket()",
        "socket.socketpair()",
        "open('/tmp/mbroker-isolation', 'w')",
        "open('/etc/passwd')",
        "os.listdir('/')",
        "os.kill(1, 0)",
        "os.kill(os.getpid(), 0)",
        "os.mkdir('/tmp/mbroker-isolation')",
        "os.memfd_create('x')",
        "os.setuid(0)",
        "os.pipe()",
    ],
)
def test_while_deciding_it_may_only_compute(start: Start, attempt: str) -> None:
    policy = start(f"{attempt}\nyield SetFrequency('web1', step=1)")
    with pytest.raises(IsolationError, match=r"PermissionError|Operation not permitted|can't start new thread"):
        policy.decide(EVENT, HOST)


@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "socket.socket()",
        "open('/tmp/mbroker-isolation', 'w')",
        "os.open('/tmp/mbroker-isolation', os.O_CREAT)",
        "os.unlink('/tmp/mbroker-isolation')",
        "os.kill(os.getppid(), 9)",
        "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    ],
)
def test_while_it_is_imported_it_may_only_read(start: Start, attempt: str) -> None:
    with pytest.raises(IsolationError, match="cannot start: PermissionError"):
        start("yield", top=attempt)
    assert not Path("/tmp/mbroker-isolation").exists()


def test_a_policy_that_does_not_exist_is_refused_with_the_reason() -> None:
    with pytest.raises(IsolationError, match="cannot start: ModuleNotFoundError"):
        IsolatedPolicy("no_such_module:Policy")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_topics_that_are_no_tuple_are_refused_as_in_process(start: Start) -> None:
    with pytest.raises(IsolationError, match=r"cannot start: TypeError: its topics must be a tuple"):
        start("return ()", topics="['sla.']")


def test_it_leaves_no_core_dump(start: Start) -> None:
    limits = Path(f"/proc/{start('return ()').pid}/limits").read_text("ascii")
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


def test_a_policy_that_nobody_may_read_says_where_it_must_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hidden.py").write_text("class Policy: topics = ()")
    tmp_path.chmod(0o700)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    with pytest.raises(IsolationError, match=f"unless in .*{tmp_path}, where user nobody may not read"):
        IsolatedPolicy("hidden:Policy")


def test_a_loop_is_cut_at_the_deadline_and_the_child_replaced(start: Start) -> None:
    slow = "if os.path.exists(f'{os.path.dirname(__file__)}/slow'): time.sleep(60)"
    policy = start("while event.value == 0.5: pass\nyield SetFrequency('web1', step=1)", top=slow, deadline=0.2)
    first = policy.pid
    Path(sys.path[0], "slow").touch()  # the next child takes long to be ready
    with pytest.raises(IsolationError, match=r"did not answer within 0\.2 s"):
        policy.decide(EVENT, HOST)
    assert policy.pid != first
    until(lambda: not is_running(first))
    with pytest.raises(IsolationError, match="started again"):
        policy.decide(EVENT, HOST)


def test_a_replaced_child_decides_again(start: Start) -> None:
    policy = start("if event.value == 0.5: os._exit(1)\nyield SetFrequency('web1', step=1)")
    with pytest.raises(IsolationError, match="process ended"):
        policy.decide(EVENT, HOST)
    until_ready(policy)
    assert policy.restarts >= 1
    assert policy.topics == ("sla.",)


def test_a_memory_eater_meets_its_limit(start: Start) -> None:
    policy = start("eaten = []\nwhile True: eaten.append(bytearray(1 << 16))\nyield")
    with pytest.raises(IsolationError, match="MemoryError"):
        policy.decide(EVENT, HOST)


def test_a_flood_of_actions_is_no_more_than_the_broker_counts(start: Start) -> None:
    policy = start("while True: yield SetFrequency('web1', step=1)")
    broker = Broker(HOST, [Hosted(policy, "flood", trusted=False, deadline=9)])
    assert [type(action) for action in broker.handle(EVENT)] == [Notify]
    assert "more than 64 actions" in broker.reports()[0].error


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("yield Notify('web1', 'x' * 100_000)", "no message"),
        ("yield Notify('web1', 'x' * 10_000_000)", "its process"),
        ("yield SetFrequency('web1', step='1')", "step: must be a whole number"),
        ("yield 'faster'", "KeyError"),
        ("os.write(3, b'x' * 10)\nyield SetFrequency('web1')", "no message"),
        ("import msgpack; os.write(3, msgpack.packb(['done', 9, []]))\nyield", "what it was not asked"),
    ],
)
def test_an_answer_that_breaks_the_rules_is_refused(start: Start, body: str, reason: str) -> None:
    policy = start(f"import contextlib\nwith contextlib.suppress(OSError):\n{textwrap.indent(body, '    ')}")
    with pytest.raises(IsolationError, match=reason):
        policy.decide(EVENT, HOST)


def test_closing_ends_the_child(start: Start) -> None:
    policy = start("yield SetFrequency('web1', step=1)")
    policy.close()
    policy.close()
    until(lambda: not is_running(policy.pid))


def test_a_looping_child_dies_with_its_broker(start: Start) -> None:
    start("while True: pass\nyield").close()  # leaves its module behind, for another broker to find
    code = f"""
import sys
sys.path[:] = {sys.path}
from mbroker.host import Host
from mbroker.isolated import CPU_SECONDS
from mbroker.isolation import IsolatedPolicy
from mchannel.event import Event
policy = IsolatedPolicy("policy_0:Policy", deadline=60)
print(policy.pid, flush=True)
policy.decide(Event("sla.epoch"), Host("h"))
"""
    broker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert broker.stdout
    pid = broker.stdout.readline().strip()
    stat = Path(f"/proc/{pid}/stat")
    until(lambda: int(stat.read_text().rpartition(")")[2].split()[11]) > 40)  # hundredths of a second: it loops
    broker.kill()
    broker.communicate()
    until(lambda: not is_running(pid))


@pytest.mark.parametrize(
    "body",
    ["while True: pass", "os._exit(0)", "time.sleep(9)", "x = []\nwhile True: x.append(bytearray(1 << 24))"],
)
def test_a_hostile_policy_costs_the_others_less_than_a_second_in_total(start: Start, body: str) -> None:
    policy = start(f"{body}\nyield", deadline=0.05)
    broker = Broker(HOST, [Hosted(policy, "hostile", trusted=False)])
    for tick in range(200):  # a hundred seconds of events, as fast as they can be handled
        broker.handle(EVENT, now=tick * 0.5)
    report = broker.reports()[0]
    assert report.failures == report.events
    assert report.events * 0.05 < 1.0, "what the deadlines of all decisions add up to"


def test_four_that_loop_hold_an_event_up_no_longer_than_one(start: Start) -> None:
    policies = [start("while True: pass\nyield", deadline=1.0) for _ in range(4)]
    broker = Broker(HOST, [Hosted(policy, str(number), trusted=False) for number, policy in enumerate(policies)])
    broker.handle(EVENT, now=0.0)
    assert [(report.events, report.skipped) for report in broker.reports()] == [(1, 0), (0, 1), (0, 1), (0, 1)]


def test_a_policy_gets_the_time_that_those_before_it_left(start: Start) -> None:
    policy = start("while True: pass\nyield", deadline=30.0)
    with pytest.raises(IsolationError, match=r"did not answer within 0\.1 s"):
        policy.decide_within(EVENT, HOST, 0.1)


def test_a_policy_that_exits_or_cannot_say_why_it_failed_keeps_its_process(start: Start) -> None:
    top = "class Mute(Exception):\n    def __str__(self): raise ValueError"
    policy = start("if event.value == 0.5: raise Mute\nsys.exit(3)\nyield", top=top)
    with pytest.raises(IsolationError, match=r"^Mute$"):
        policy.decide(EVENT, HOST)
    with pytest.raises(IsolationError, match="SystemExit: 3"):
        policy.decide(attrs.evolve(EVENT, value=1.0), HOST)
    assert policy.restarts == 0


def test_an_answer_to_no_question_costs_the_child_its_life(start: Start) -> None:
    policy = start("import msgpack; os.write(3, msgpack.packb(['done', 9, []]))\nyield")
    with pytest.raises(IsolationError, match="what it was not asked"):
        policy.decide(EVENT, HOST)
    assert policy.restarts == 1


def test_a_child_that_answers_is_granted_more_processor_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    granted: list[tuple[int, int, tuple[int, int]]] = []
    monkeypatch.setattr("mbroker.isolation._EXTEND_EVERY", 2)
    monkeypatch.setattr("resource.prlimit", lambda *grant: granted.append(grant))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    policy = start("return ()")
    for _ in range(3):
        policy.decide(EVENT, HOST)
    ((pid, limit, (soft, hard)),) = granted
    assert (pid, limit, hard) == (policy.pid, resource.RLIMIT_CPU, resource.RLIM_INFINITY)
    assert soft > CPU_SECONDS
