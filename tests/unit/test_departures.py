"""Who decides about the halves of a domain that a migration left on two hosts, and how."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import attrs
import pytest

from mbroker.fleet.departures import Departure, Departures, Verdict, verdict
from mbroker.fleet.fleet import Fleet
from mbroker.fleet.message import Admit, Discard, Message, Whereabouts, Wherever
from mbroker.fleet.records import RecordFile
from mbroker.hypervisor import DomainEvent, EventStream, Kind, State
from mbroker.hypervisor.fake import Fault, Step, Trouble, World
from mchannel.errors import JournalError
from tests.unit.fleet_world import Network, fleet, run
from tests.unit.test_migration import migrated

LEFT = Departure("aaaaaaaa-0000-4000-8000-000000000001", "web1", "b", "7")
GONE = attrs.evolve(LEFT, left=True)
STAYED = attrs.evolve(LEFT, stayed=True)
NOTHING = Whereabouts(LEFT.domain, here=False, running=False)
FILLED = attrs.evolve(NOTHING, here=True)
WAITS = attrs.evolve(FILLED, ticket="7")
WAITS_FOR_ANOTHER = attrs.evolve(FILLED, ticket="8")
RUNS = attrs.evolve(FILLED, running=True)


@pytest.mark.parametrize(
    ("departure", "here", "there", "expected"),
    [
        (LEFT, State.RUNNING, WAITS, Verdict.DISCARD_THERE),
        (LEFT, State.PAUSED, WAITS, Verdict.DISCARD_THERE),
        (LEFT, State.RUNNING, NOTHING, Verdict.SETTLED),
        (LEFT, State.RUNNING, RUNS, Verdict.TWICE),
        (STAYED, State.PAUSED, attrs.evolve(WAITS, running=True), Verdict.TWICE),
        (LEFT, State.MOVING, WAITS, Verdict.DISCARD_HERE),
        (LEFT, State.MOVING, RUNS, Verdict.DISCARD_HERE),
        (LEFT, State.MOVING, FILLED, Verdict.WAIT),
        (LEFT, State.MOVING, WAITS_FOR_ANOTHER, Verdict.WAIT),
        (LEFT, State.MOVING, NOTHING, Verdict.ADMIT_HERE),
        (LEFT, None, WAITS, Verdict.ASK),
        (LEFT, State.OFF, WAITS, Verdict.ASK),
        (LEFT, None, attrs.evolve(WAITS, running=True), Verdict.ADMIT_THERE),
        (GONE, None, WAITS, Verdict.ADMIT_THERE),
        (GONE, State.OFF, WAITS, Verdict.ADMIT_THERE),
        (GONE, State.PAUSED, WAITS, Verdict.DISCARD_THERE),
        (attrs.evolve(GONE, stayed=True), None, WAITS, Verdict.DISCARD_THERE),
        (LEFT, None, WAITS_FOR_ANOTHER, Verdict.SETTLED),
        (LEFT, None, RUNS, Verdict.SETTLED),
        (LEFT, None, NOTHING, Verdict.SETTLED),
        (STAYED, None, WAITS, Verdict.DISCARD_THERE),
        (STAYED, State.OFF, WAITS, Verdict.DISCARD_THERE),
        (STAYED, State.MOVING, WAITS, Verdict.DISCARD_THERE),
        (STAYED, None, attrs.evolve(WAITS, running=True), Verdict.SETTLED),
    ],
)
def test_a_domain_is_let_run_at_one_host(
    departure: Departure, here: State | None, there: Whereabouts, expected: Verdict
) -> None:
    assert verdict(departure, here, there) is expected


Play = Callable[[World, Network, str], None]


def _interrupted(folder: Path, fault: Fault, play: Play, *, at: Step | None = None) -> tuple[list[str], World]:
    """Move a domain from a to b with *fault*, and return where it runs in the end.

    *play* begins at that step, or *at* another.
    """

    async def main() -> tuple[list[str], World]:
        world, network = fleet(folder, "a", "b")
        domain = world.boot(world.host("a"), "web1")
        await asyncio.sleep(1)
        world.plan(fault)

        async def at_step(step: Step, _: str) -> None:
            if step is (at or fault.step):
                play(world, network, domain)
            await asyncio.sleep(0.01)

        world.at_step = at_step
        move = asyncio.create_task(migrated(network, domain))
        await asyncio.sleep(40)
        move.cancel()
        world.check()
        return [host.uri for host in world.running(domain)], world

    return run(main())


def _later(seconds: float, do: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_later(seconds, do)


def _restart(_: World, network: Network, __: str) -> None:
    _later(1, network.brokers["a"].kill)
    _later(2, network.brokers["a"].start)


def _cut(network: Network, *, off: bool = True) -> None:
    network.cut = off
    network.brokers["a"].network_changed()


@pytest.mark.parametrize(
    ("step", "host"), [(Step.COPY, "a"), (Step.FINISH, "a"), (Step.CONFIRM, "b"), (Step.ADMIT, "b")]
)
def test_a_broker_that_died_finishes_after_its_restart(tmp_path: Path, step: Step, host: str) -> None:
    running, world = _interrupted(tmp_path, Fault(step, Trouble.HANG), _restart)
    assert running == [f"fake://{host}"]
    assert [len(each.halves) for each in world.hosts.values()].count(1) == 1


@pytest.mark.parametrize("ends", [True, False])
def test_a_twin_of_a_domain_that_went_on_at_its_source_is_never_admitted(tmp_path: Path, ends: bool) -> None:
    """Not even when the domain has ended there before the destination can be asked, and its broker has died."""

    def play(world: World, network: Network, domain: str) -> None:
        _cut(network)
        _restart(world, network, domain)
        if ends:
            _later(0.5, lambda: world.host("a").forget(domain))
        _later(5, lambda: _cut(network, off=False))

    running, world = _interrupted(tmp_path, Fault(Step.FINISH, Trouble.CUT), play)
    assert running == ([] if ends else ["fake://a"])
    assert not world.host("b").halves


End = Callable[[World, str], None]


def _undefined(world: World, domain: str) -> None:
    world.host("a").forget(domain)


def _off(left: bool | None) -> End:
    def end(world: World, domain: str) -> None:
        half = world.host("a").halves[domain]
        half.state, half.left = State.OFF, left

    return end


def _ended_unseen(end: End, *, resumed: bool = True) -> Play:
    """Kill the broker as the halves hang, let the domain run on by hand and *end*, and start the broker again."""

    def play(world: World, network: Network, domain: str) -> None:
        _later(1, network.brokers["a"].kill)
        if resumed:
            _later(2, lambda: world.host("a").let_run(domain, ""))
        _later(7, lambda: end(world, domain))
        _later(8, network.brokers["a"].start)

    return play


@pytest.mark.parametrize("end", [_undefined, _off(None)])
def test_a_domain_whose_end_nobody_saw_waits_for_an_operator(
    tmp_path: Path, end: End, caplog: pytest.LogCaptureFixture
) -> None:
    running, world = _interrupted(tmp_path, Fault(Step.CONFIRM, Trouble.HANG), _ended_unseen(end))
    assert running == []
    assert [half.state for half in world.host("b").halves.values()] == [State.MOVING]
    (said,) = [record.getMessage() for record in caplog.records if "was not seen" in record.getMessage()]
    assert said.endswith("There, if it ran on here: virsh destroy web1; only if it did not: virsh resume web1")


def test_a_domain_that_runs_twice_is_cried_out_until_one_is_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[dict[str, str]] = []

    async def main() -> list[str]:
        world, network = fleet(tmp_path, "a", "b")
        domain = world.boot(world.host("a"), "web1")
        await asyncio.sleep(1)
        world.plan(Fault(Step.FINISH, Trouble.CUT))
        world.at_step = _cut_at_the_end(network)
        await migrated(network, domain)
        b = world.host("b")
        b.let_run(domain, b.halves[domain].info.arrival.ticket)  # type: ignore[union-attr]  # by hand, and wrong
        _cut(network, off=False)
        mover = network.brokers["a"].mover
        assert mover is not None
        await asyncio.sleep(70)
        shown.append(dict(mover.twice))
        cries = len(_cries(caplog))
        await b.destroy(domain)
        await asyncio.sleep(70)
        shown.append(dict(mover.twice))
        assert len(_cries(caplog)) == cries == 2
        assert shown == [{domain: "b"}, {}]
        return _cries(caplog)

    assert run(main())[0].startswith("web1 RUNS TWICE, ON a AND ON b: at once, stop the one whose work is to be lost")


def _cries(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


def _cut_at_the_end(network: Network) -> Callable[[Step, str], Awaitable[None]]:
    async def at_step(step: Step, _: str) -> None:
        if step is Step.FINISH:
            _cut(network)

    return at_step


def test_a_domain_that_ran_to_its_end_unseen_is_not_let_run_elsewhere(tmp_path: Path) -> None:
    running, world = _interrupted(tmp_path, Fault(Step.CONFIRM, Trouble.HANG), _ended_unseen(_off(False)))
    assert running == []
    assert not world.host("b").halves


def test_a_domain_that_left_unseen_is_let_run_where_it_went(tmp_path: Path) -> None:
    play = _ended_unseen(_off(True), resumed=False)
    running, _ = _interrupted(tmp_path, Fault(Step.CONFIRM, Trouble.HANG), play)
    assert running == ["fake://b"]


def test_nothing_is_let_run_before_it_can_be_noted_that_it_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = False
    keep = RecordFile[Departure].keep

    def keep_if_there_is_room(file: RecordFile[Departure], records: tuple[Departure, ...]) -> None:
        if full:
            raise JournalError("no space left")
        keep(file, records)

    def play(world: World, _: Network, domain: str) -> None:
        nonlocal full
        full = True
        _later(20, lambda: rows.append(len(world.running(domain))))
        _later(20, make_room)

    def make_room() -> None:
        nonlocal full
        full = False

    rows: list[int] = []
    monkeypatch.setattr(RecordFile, "keep", keep_if_there_is_room)
    running, _ = _interrupted(tmp_path, Fault(Step.ADMIT, Trouble.ERROR), play)
    assert (rows, running) == ([0], ["fake://b"])
    assert "waits until it can be noted" in caplog.text


def test_a_domain_that_came_back_for_a_moment_only_is_not_admitted_elsewhere(tmp_path: Path) -> None:
    tasks: list[asyncio.Task[None]] = []

    def play(world: World, _: Network, domain: str) -> None:
        async def watch(events: EventStream) -> None:
            async for event in events:
                if event.kind is Kind.ARRIVED:
                    world.host("a").forget(domain)

        tasks.append(asyncio.create_task(watch(world.host("a").events())))

    running, world = _interrupted(tmp_path, Fault(Step.FINISH, Trouble.CUT), play)
    assert running == []
    assert not world.host("b").halves


def test_a_domain_that_was_paused_and_resumed_while_it_was_copied_has_not_stayed(tmp_path: Path) -> None:
    tasks: list[asyncio.Task[None]] = []

    def play(world: World, network: Network, domain: str) -> None:
        async def pause() -> None:
            await world.host("a").pause(domain)
            await world.host("a").resume(domain)

        tasks.append(asyncio.create_task(pause()))
        _restart(world, network, domain)

    running, _ = _interrupted(tmp_path, Fault(Step.ADMIT, Trouble.HANG), play, at=Step.COPY)
    assert running == ["fake://b"]


def test_a_domain_that_cannot_be_decided_about_runs_nowhere_and_both_brokers_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def play(world: World, network: Network, domain: str) -> None:
        _cut(network)
        _restart(world, network, domain)

    running, _ = _interrupted(tmp_path, Fault(Step.CONFIRM, Trouble.HANG), play)
    assert running == []
    said = [record.getMessage() for record in caplog.records if "virsh resume web1" in record.getMessage()]
    assert len(said) == 2
    here, there = sorted(said)
    assert here.startswith("web1 is here, whole and paused, until the broker of fake://a says")
    assert there.startswith("web1 is paused here until b can say whether it has it; if b is lost: virsh resume web1")
    assert "while this broker runs" in there


def test_a_move_that_cannot_be_noted_is_not_begun(tmp_path: Path) -> None:
    async def main() -> None:
        world, network = fleet(tmp_path, "a", "b")
        domain = world.boot(world.host("a"), "web1")
        await asyncio.sleep(1)
        file = network.brokers["a"]._departures  # pyright: ignore[reportPrivateUsage]
        assert file is not None
        file.close()
        result = await migrated(network, domain)
        assert (result.moved, result.host, result.step) == (False, "a", "move")
        assert "is closed; open it again" in result.reason
        assert world.host("a").calls["migrate"] == 0

    run(main())


def test_only_what_arrived_by_that_migration_obeys(tmp_path: Path) -> None:
    async def main() -> list[Message | str | None]:
        world, network = fleet(tmp_path, "a", "b")
        domain = world.boot(world.host("b"), "web1")
        await asyncio.sleep(1)
        answers: list[Message | str | None] = []
        for question in (Discard(domain, ""), Discard(domain, "7"), Admit(domain, "7"), Wherever(domain)):
            try:
                answers.append(await network.brokers["b"].hear("a", question))
            except Exception as error:
                answers.append(str(error))
        return answers

    refused, refused_too, admitted, seen = run(main())
    assert "not left here by that migration" in str(refused)
    assert "not left here by that migration" in str(refused_too)
    assert admitted == seen == Whereabouts(LEFT.domain, here=True, running=True, attended=True)


def _asked(folder: Path, answer: Whereabouts, *, moves: bool) -> list[Message]:
    """Return what b is asked of a domain that left for it and that *answer* is about; *moves*: it moves again then."""

    async def main() -> list[Message]:
        world, network = fleet(folder, "a", "b")
        network.brokers["a"].kill()
        file = RecordFile(folder / "more.departures", Departure)
        file.found = (GONE,)
        questions: list[Message] = []
        leaving = AsyncExitStack()

        class Asking:
            name = "a"

            async def ask(self, _: str, question: Message, *__: object) -> Whereabouts:
                if moves and not questions:
                    await leaving.enter_async_context(departures.leaving(GONE.domain, "web1", "b"))
                questions.append(question)
                return answer

        departures = Departures(file, world.host("a"), cast("Fleet", Asking()))
        task = asyncio.create_task(departures.run())
        await asyncio.sleep(3)
        task.cancel()
        file.close()
        return questions

    return run(main())


def test_what_waits_there_is_let_run_when_it_left(tmp_path: Path) -> None:
    assert Admit(GONE.domain, "7") in _asked(tmp_path, WAITS, moves=False)


def test_an_answer_about_another_domain_settles_nothing(tmp_path: Path) -> None:
    other = attrs.evolve(WAITS, domain="aaaaaaaa-0000-4000-8000-000000000002")
    assert set(_asked(tmp_path, other, moves=False)) == {Wherever(GONE.domain)}


def test_an_answer_is_of_no_use_when_the_domain_moves_again_meanwhile(tmp_path: Path) -> None:
    assert _asked(tmp_path, WAITS, moves=True) == [Wherever(GONE.domain)]


def test_only_the_migration_under_way_is_seen_to_leave(tmp_path: Path) -> None:
    async def main() -> dict[str, tuple[bool, bool]]:
        world, network = fleet(tmp_path, "a", "b")
        network.brokers["a"].kill()
        file = RecordFile(tmp_path / "more.departures", Departure)
        file.found = (LEFT,)
        departures = Departures(file, world.host("a"), cast("Fleet", None))
        async with departures.leaving(LEFT.domain, "web1", "b") as ticket:
            for kind in (Kind.LEAVING, Kind.LEFT):
                await departures._note(DomainEvent.of(kind, LEFT.domain, "web1", 0.0))  # pyright: ignore[reportPrivateUsage]
        file.close()
        found = RecordFile(tmp_path / "more.departures", Departure)
        found.close()
        return {"new" if each.ticket == ticket else "old": (each.stayed, each.left) for each in found.found}

    assert run(main()) == {"old": (True, False), "new": (False, True)}


@pytest.mark.parametrize(("another_moves", "left"), [(True, False), (False, True)])
def test_an_end_here_is_that_of_an_earlier_migration_only_when_no_other_is_under_way(
    tmp_path: Path, another_moves: bool, left: bool
) -> None:
    async def main() -> list[bool]:
        world, network = fleet(tmp_path, "a", "b")
        network.brokers["a"].kill()
        file = RecordFile(tmp_path / "more.departures", Departure)
        file.found = (LEFT,)
        departures = Departures(file, world.host("a"), cast("Fleet", None))
        async with AsyncExitStack() as moving:
            if another_moves:
                await moving.enter_async_context(departures.leaving(LEFT.domain, "web1", "b"))
            await departures._note(DomainEvent.of(Kind.LEFT, LEFT.domain, "web1", 0.0))  # pyright: ignore[reportPrivateUsage]
        file.close()
        found = RecordFile(tmp_path / "more.departures", Departure)
        found.close()
        return [each.left for each in found.found if each.ticket == LEFT.ticket]

    assert run(main()) == [left]


def test_a_domain_that_left_between_both_answers_does_not_run_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> int:
        world, network = fleet(tmp_path, "a", "b")
        network.brokers["a"].kill()
        domain = world.boot(world.host("a"), "web1")
        file = RecordFile(tmp_path / "more.departures", Departure)
        file.found = (attrs.evolve(LEFT, domain=domain),)
        questions = 0

        class Asking:
            name = "a"

            async def ask(self, *_: object) -> Whereabouts:
                nonlocal questions
                questions += 1
                world.host("a").forget(domain)
                return attrs.evolve(RUNS, domain=domain)

        departures = Departures(file, world.host("a"), cast("Fleet", Asking()))
        task = asyncio.create_task(departures.run())
        await asyncio.sleep(3)
        task.cancel()
        file.close()
        return questions

    assert run(main()) > 0
    assert _cries(caplog) == []
