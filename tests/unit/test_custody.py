"""How a domain's sessions pass from host to host: every order of events and messages, without I/O."""

from __future__ import annotations

from collections import deque
from uuid import UUID

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from mbroker.fleet.custody import GRACE, SETTLING, Attend, Custody, Kept, Order, Part, Tell
from mbroker.fleet.message import Claim, Claimed, Offer, Offering, Taken
from mbroker.hypervisor import DomainEvent, Kind, State

D = "11111111-0000-4000-8000-000000000001"


def event(kind: Kind, domain: str = D, state: State | None = None) -> DomainEvent:
    return DomainEvent.of(kind, domain, "web1", 0.0, state)


def orders(custody: Custody) -> list[Order]:
    taken = list(custody.orders)
    custody.orders.clear()
    return taken


@pytest.fixture
def source() -> Custody:
    """A host that attends to the domain."""
    custody = Custody()
    custody.happened(event(Kind.STARTED), 0)
    custody.on_members(frozenset({"b"}))
    orders(custody)
    return custody


def test_a_domain_that_boots_is_attended_at_once() -> None:
    custody = Custody(fleet=frozenset({"b"}))
    custody.on_members(frozenset({"b"}))
    custody.happened(event(Kind.STARTED), 0)
    assert orders(custody) == [Attend(D)]


def test_a_domain_that_pauses_to_leave_is_parted_from_and_offered(source: Custody) -> None:
    source.happened(event(Kind.LEAVING), 1)
    assert orders(source) == [Part(D)]
    source.parted(D, (b"s",), unix=5)
    assert orders(source) == [Tell(Offer(D, 5000, (b"s",)))]
    assert source.parked == (Kept(D, 5000, (b"s",)),)


def test_an_offer_that_came_before_its_domain_is_taken_up_when_nobody_knows_better() -> None:
    custody = Custody(fleet=frozenset({"b"}))
    custody.on_members(frozenset({"b"}))
    custody.on_offer(Offer(D, 7, (b"s",)), 0)
    custody.happened(event(Kind.ARRIVING), 1)
    custody.happened(event(Kind.ARRIVED), 2)
    assert orders(custody) == [Tell(Claim(D))]
    custody.on_claimed("b", Claimed(D), 2)
    assert orders(custody) == [Attend(D, (b"s",)), Tell(Taken(D, 7))]


def test_a_domain_that_arrives_first_waits_for_its_offer() -> None:
    custody = Custody()
    custody.happened(event(Kind.ARRIVING), 0)
    assert orders(custody) == []
    custody.on_offer(Offer(D, 7, (b"s",)), 1)
    assert orders(custody) == [Attend(D, (b"s",)), Tell(Taken(D, 7))]


def test_a_domain_without_an_offer_is_claimed_and_attended_after_the_grace() -> None:
    custody = Custody(fleet=frozenset({"b", "c"}))
    custody.on_members(frozenset({"b", "c"}))
    custody.happened(event(Kind.ARRIVED), 10)
    assert orders(custody) == [Tell(Claim(D))]
    assert custody.deadline() == 10 + GRACE
    custody.tick(10 + GRACE)
    assert orders(custody) == [Attend(D)]


LARGE = bytes(2 << 20)


def test_large_sessions_are_announced_before_they_are_sent(source: Custody) -> None:
    source.happened(event(Kind.LEAVING), 1)
    source.parted(D, (LARGE,), unix=5)
    assert orders(source) == [Part(D), Tell(Offering(D)), Tell(Offer(D, 5000, (LARGE,)))]
    source.happened(event(Kind.LEFT), 2)
    source.on_claim("b", Claim(D))
    assert orders(source) == [Tell(Offering(D), "b"), Tell(Claimed(D, 5000, (LARGE,)), "b")]


@pytest.mark.parametrize("first", [True, False])
def test_sessions_that_are_on_their_way_are_waited_for_beyond_the_grace(first: bool) -> None:
    custody = Custody(fleet=frozenset({"b", "c"}))
    custody.on_members(frozenset({"b", "c"}))
    if first:
        custody.on_offering("b", Offering(D), 9)
    custody.happened(event(Kind.ARRIVED), 10)
    if not first:
        custody.on_offering("b", Offering(D), 11)
    orders(custody)
    custody.tick(10 + 10 * GRACE)
    custody.on_claimed("c", Claimed(D), 30)
    assert orders(custody) == []
    custody.on_offer(Offer(D, 7, (LARGE,)), 31)
    assert orders(custody) == [Attend(D, (LARGE,)), Tell(Taken(D, 7))]


def test_sessions_whose_host_goes_away_on_their_way_are_not_waited_for() -> None:
    custody = Custody(fleet=frozenset({"b"}))
    custody.on_members(frozenset({"b"}))
    custody.on_offering("b", Offering(D), 9)
    custody.happened(event(Kind.ARRIVED), 10)
    orders(custody)
    custody.on_members(frozenset())
    custody.tick(11)
    assert orders(custody) == [Attend(D)]


def test_a_domain_is_attended_when_all_have_answered_that_they_keep_nothing() -> None:
    custody = Custody(fleet=frozenset({"b", "c"}))
    custody.on_members(frozenset({"b", "c"}))
    custody.happened(event(Kind.PRESENT, state=State.RUNNING), 0)
    orders(custody)
    custody.on_claimed("b", Claimed(D), 0)
    assert orders(custody) == []
    custody.on_claimed("c", Claimed(D), 0)
    assert orders(custody) == [Attend(D)]


def test_a_claim_is_answered_with_what_is_parked(source: Custody) -> None:
    source.happened(event(Kind.SAVED), 1)
    source.parted(D, (b"s",), unix=5)
    orders(source)
    source.on_claim("b", Claim(D))
    assert orders(source) == [Tell(Claimed(D, 5000, (b"s",)), "b")]


def test_what_another_host_took_is_forgotten(source: Custody) -> None:
    source.happened(event(Kind.LEAVING), 1)
    source.parted(D, (b"s",), unix=5)
    source.on_taken(Taken(D, 5000))
    assert source.parked == ()
    source.happened(event(Kind.LEFT), 2)
    source.happened(event(Kind.ARRIVED), 3)
    assert Attend(D, (b"s",)) not in orders(source)


def test_what_another_host_holds_ready_is_kept_until_the_domain_has_left(source: Custody) -> None:
    source.happened(event(Kind.LEAVING), 1)
    source.parted(D, (b"s",), unix=5)
    source.on_taken(Taken(D, 5000))
    orders(source)
    source.happened(event(Kind.RESUMED), 2)  # the other died before it ran there
    assert orders(source) == [Attend(D, (b"s",)), Tell(Taken(D, 5000))]


def test_a_claim_of_a_domain_that_is_attended_is_answered_when_it_leaves(source: Custody) -> None:
    source.on_claim("b", Claim(D))
    assert orders(source) == []
    source.happened(event(Kind.LEAVING), 1)
    source.parted(D, (b"s",), unix=5)
    assert orders(source) == [Part(D), Tell(Offer(D, 5000, (b"s",)))]


def test_a_claim_is_not_answered_while_the_domain_is_being_parted_from(source: Custody) -> None:
    source.happened(event(Kind.LEAVING), 1)
    orders(source)
    source.on_claim("b", Claim(D))
    assert orders(source) == []  # rather than that nothing is kept
    source.parted(D, (b"s",), unix=5)
    assert orders(source) == [Tell(Offer(D, 5000, (b"s",)))]


def test_what_was_taken_of_an_older_generation_forgets_nothing(source: Custody) -> None:
    source.happened(event(Kind.LEAVING), 1)
    source.parted(D, (b"s",), unix=5)
    source.happened(event(Kind.LEFT), 2)
    orders(source)
    source.on_taken(Taken(D, 4999))
    assert source.parked == (Kept(D, 5000, (b"s",)),)
    source.on_claim("b", Claim(D))
    assert orders(source) == [Tell(Claimed(D, 5000, (b"s",)), "b")]


def test_what_another_host_took_is_not_given_to_a_third(source: Custody) -> None:
    source.happened(event(Kind.LEAVING), 1)
    source.parted(D, (b"s",), unix=5)
    source.on_taken(Taken(D, 5000))
    orders(source)
    source.on_claim("c", Claim(D))
    assert orders(source) == [Tell(Claimed(D), "c")]


def test_a_clock_that_was_ahead_before_a_restart_refuses_no_offer() -> None:
    custody = Custody(generations={D: 90_000})
    custody.happened(event(Kind.STARTED), 0)
    orders(custody)
    custody.happened(event(Kind.LEAVING), 1)
    custody.parted(D, (), unix=5)
    assert orders(custody) == [Part(D), Tell(Offer(D, 90_001, ()))]


def test_an_aborted_migration_takes_up_its_own_sessions_and_says_so(source: Custody) -> None:
    source.happened(event(Kind.LEAVING), 1)
    source.parted(D, (b"s",), unix=5)
    orders(source)
    source.happened(event(Kind.RESUMED), 2)
    assert orders(source) == [Attend(D, (b"s",)), Tell(Taken(D, 5000))]


def test_an_older_offer_is_ignored() -> None:
    custody = Custody()
    custody.on_offer(Offer(D, 7, (b"new",)), 0)
    custody.on_offer(Offer(D, 6, (b"old",)), 0)
    custody.happened(event(Kind.ARRIVED), 1)
    assert orders(custody) == [Attend(D, (b"new",)), Tell(Taken(D, 7))]


def test_a_domain_that_ended_leaves_nothing(source: Custody) -> None:
    source.happened(event(Kind.STOPPED), 1)
    assert orders(source) == [Part(D)]
    source.parted(D, (b"s",), unix=5)
    assert (orders(source), source.parked) == ([], ())


def test_a_domain_that_runs_here_in_post_copy_is_claimed_like_one_that_arrived() -> None:
    custody = Custody(fleet=frozenset({"b"}))
    custody.on_members(frozenset({"b"}))
    custody.happened(event(Kind.POSTCOPY, state=State.RUNNING), 0)
    assert orders(custody) == [Tell(Claim(D))]


def test_a_domain_that_runs_elsewhere_in_post_copy_is_parted_from(source: Custody) -> None:
    source.happened(event(Kind.POSTCOPY, state=State.MOVING), 0)
    assert orders(source) == [Part(D)]


def test_a_domain_between_two_hosts_at_the_start_is_not_attended() -> None:
    custody = Custody()
    custody.happened(event(Kind.PRESENT, state=State.MOVING), 0)
    assert orders(custody) == []


def test_a_domain_that_did_not_arrive_is_offered_back() -> None:
    custody = Custody()
    custody.happened(event(Kind.ARRIVING), 0)
    custody.on_offer(Offer(D, 7, (b"s",)), 1)
    orders(custody)
    custody.happened(event(Kind.STOPPED), 2)
    custody.parted(D, (b"s",), unix=0)
    assert orders(custody) == [Part(D), Tell(Offer(D, 8, (b"s",)))]


def test_an_offer_for_a_domain_that_never_comes_is_let_go() -> None:
    custody = Custody()
    custody.on_offer(Offer(D, 7, (b"s",)), 0)
    custody.tick(61)
    custody.happened(event(Kind.ARRIVED), 62)
    assert orders(custody) == [Attend(D)]


def test_what_was_parked_before_a_restart_is_taken_up() -> None:
    custody = Custody((Kept(D, 7, (b"s",)),))
    custody.happened(event(Kind.PRESENT, state=State.RUNNING), 0)
    assert orders(custody) == [Attend(D, (b"s",)), Tell(Taken(D, 7))]


def test_what_is_parked_may_have_been_overtaken_at_a_member_that_is_away() -> None:
    custody = Custody((Kept(D, 7, (b"s",)),), frozenset({"b"}))
    custody.happened(event(Kind.PRESENT, state=State.RUNNING), 0)
    assert orders(custody) == [Attend(D, (b"s",), overtaken=True), Tell(Taken(D, 7))]


def test_what_is_parked_may_have_been_overtaken_when_a_member_does_not_answer() -> None:
    custody = Custody((Kept(D, 7, (b"s",)),), frozenset({"b"}))
    custody.on_members(frozenset({"b"}))
    custody.happened(event(Kind.PRESENT, state=State.RUNNING), 0)
    orders(custody)
    custody.tick(GRACE)
    assert orders(custody) == [Attend(D, (b"s",), overtaken=True), Tell(Taken(D, 7))]


def test_members_that_come_soon_after_the_start_are_asked_too() -> None:
    custody = Custody(fleet=frozenset({"b", "c"}), now=0)
    custody.happened(event(Kind.PRESENT, state=State.RUNNING), 0)
    assert orders(custody) == []
    custody.on_members(frozenset({"b"}))
    assert orders(custody) == [Tell(Claim(D), "b")]
    custody.on_claimed("b", Claimed(D, 7, (b"s",)), 1)
    assert orders(custody) == []  # c may know better
    custody.tick(SETTLING)
    assert orders(custody) == [Attend(D, (b"s",), overtaken=True), Tell(Taken(D, 7))]


def test_the_newest_sessions_count_whoever_kept_them() -> None:
    custody = Custody((Kept(D, 7, (b"mine",)),), frozenset({"b", "c"}))
    custody.on_members(frozenset({"b", "c"}))
    custody.happened(event(Kind.PRESENT, state=State.RUNNING), 0)
    assert orders(custody) == [Tell(Claim(D))]
    custody.on_claimed("b", Claimed(D, 6, (b"older",)), 0)
    custody.on_claimed("c", Claimed(D, 8, (b"newer",)), 0)
    assert orders(custody) == [Attend(D, (b"newer",)), Tell(Taken(D, 8))]


@pytest.mark.parametrize("kind", [Kind.PAUSED, Kind.REBOOTED])
def test_a_domain_that_only_rests_stays_attended(source: Custody, kind: Kind) -> None:
    source.happened(event(kind), 1)
    assert orders(source) == []
    assert source.attends(D)


def test_parked_sessions_are_bounded() -> None:
    custody = Custody()
    domains = [str(UUID(int=number)) for number in range(300)]
    for domain in domains:
        custody.happened(event(Kind.STARTED, domain), 0)
        custody.happened(event(Kind.SAVED, domain), 0)
        custody.parted(domain, (), unix=1)
    assert [kept.domain for kept in custody.parked] == domains[-256:]


# --- three hosts, one domain, every order ---------------------------------------------------------


@attrs.define
class Agent:
    """The agent in the domain: messages 1 to ``sent``; those up to ``acknowledged`` it does not hold any more."""

    sent: int = 0
    acknowledged: int = 0


@attrs.define
class Host:
    """One broker: what it has received of the agent, when it attends."""

    custody: Custody
    mail: deque[tuple[str, Offering | Offer | Taken | Claim | Claimed]] = attrs.field(
        factory=deque[tuple[str, Offering | Offer | Taken | Claim | Claimed]]
    )
    attended: bool = False
    done: int | None = None
    sure_from: int = 0
    """Messages before this one may have been seen by another broker."""
    up: bool = True


def others(name: str) -> frozenset[str]:
    return frozenset("abc") - {name}


class Fleet(RuleBasedStateMachine):
    """Migrations, aborts, saves, and brokers that are killed, against the promise of a session."""

    hosts = Bundle("hosts")

    @initialize()
    def boot(self) -> None:
        self.now = 0.0
        self.agent = Agent()
        self.all = {name: Host(Custody(fleet=others(name))) for name in "abc"}
        self.at: str | None = "a"
        self.saved_by: str | None = None
        self.script: list[tuple[str, Kind]] = []
        self.lossy = False
        self.delivered: list[tuple[int, bool]] = []
        self.know_members()
        self.tell("a", Kind.STARTED)

    def know_members(self) -> None:
        for name, host in self.all.items():
            host.custody.on_members(frozenset(other for other in self.all if other != name and self.all[other].up))

    def tell(self, name: str, kind: Kind) -> None:
        host = self.all[name]
        if host.up:
            running = State.RUNNING if kind is Kind.PRESENT else None
            host.custody.happened(event(kind, state=running), self.now)
            self.carry_out(name)

    def carry_out(self, name: str) -> None:
        host = self.all[name]
        while host.custody.orders:
            match host.custody.orders.popleft():
                case Attend(_, snapshots, overtaken):
                    host.attended = True
                    host.done = int(snapshots[0]) if snapshots else None
                    host.sure_from = self.agent.sent + 1 if overtaken or not snapshots else 0
                case Part():
                    kept = () if host.done is None else (str(host.done).encode(),)
                    host.attended, host.done = False, None
                    host.custody.parted(D, kept, self.now)
                case Tell(message, to):
                    for other, target in self.all.items():
                        if other != name and to in (None, other) and target.up:
                            target.mail.append((name, message))

    @rule(count=st.integers(1, 3))
    def agent_writes(self, count: int) -> None:
        self.agent.sent += count

    @rule(acknowledge=st.booleans())
    def traffic_flows(self, acknowledge: bool) -> None:
        host = self.all.get(self.at or "")
        if host is None or not host.up or not host.attended:
            return
        done = host.done or 0
        for number in range(max(done, self.agent.acknowledged) + 1, self.agent.sent + 1):
            self.delivered.append((number, number < host.sure_from))
        host.done = self.agent.sent
        if acknowledge:
            self.agent.acknowledged = host.done

    @rule(name=st.sampled_from("abc"))
    def mail_arrives(self, name: str) -> None:
        host = self.all[name]
        if host.up and host.mail:
            sender, message = host.mail.popleft()
            match message:
                case Offering():
                    host.custody.on_offering(sender, message, self.now)
                case Offer():
                    host.custody.on_offer(message, self.now)
                case Taken():
                    host.custody.on_taken(message)
                case Claim():
                    host.custody.on_claim(sender, message)
                case Claimed():
                    host.custody.on_claimed(sender, message, self.now)
            self.carry_out(name)

    @rule(seconds=st.sampled_from([0.05, 0.4, 2.5]))
    def time_passes(self, seconds: float) -> None:
        if seconds > GRACE and any(host.mail for host in self.all.values()):
            self.lossy = True  # somebody's patience ends before the mail comes
        self.now += seconds
        for name, host in self.all.items():
            if host.up:
                host.custody.tick(self.now)
                self.carry_out(name)

    @precondition(lambda self: self.script)
    @rule()
    def the_hypervisor_goes_on(self) -> None:
        name, kind = self.script.pop(0)
        if kind is Kind.LEAVING:
            self.at = None
        elif kind in (Kind.ARRIVED, Kind.RESUMED, Kind.RESTORED):
            self.at = name
        self.tell(name, kind)

    @precondition(lambda self: not self.script and self.at)
    @rule(to=st.sampled_from("abc"), story=st.sampled_from(["good", "late", "abort", "early", "save"]))
    def domain_moves(self, to: str, story: str) -> None:
        source = self.at
        if source is None or to == source:
            return
        if any(host.mail for host in self.all.values()):
            self.lossy = True  # what brokers tell each other takes longer than a migration
        self.script = {
            "good": [(to, Kind.ARRIVING), (source, Kind.LEAVING), (to, Kind.ARRIVED), (source, Kind.LEFT)],
            "late": [(source, Kind.LEAVING), (to, Kind.ARRIVING), (to, Kind.ARRIVED), (source, Kind.LEFT)],
            "abort": [
                (to, Kind.ARRIVING),
                (source, Kind.LEAVING),
                (to, Kind.STOPPED),
                (source, Kind.ARRIVED),
            ],
            "early": [(to, Kind.ARRIVING), (to, Kind.STOPPED)],
            "save": [(source, Kind.SAVED), (to, Kind.RESTORED)],
        }[story]
        if story == "save":
            self.at = None

    @rule(name=st.sampled_from("abc"))
    def broker_is_killed(self, name: str) -> None:
        host = self.all[name]
        if host.up:
            self.lossy = True
            self.all[name] = Host(
                Custody(host.custody.parked, others(name), self.now, dict(host.custody.generations)), up=False
            )
            self.know_members()

    @rule(name=st.sampled_from("abc"))
    def broker_starts(self, name: str) -> None:
        host = self.all[name]
        if not host.up:
            host.up = True
            self.know_members()
            if self.at == name:
                self.tell(name, Kind.PRESENT)

    @invariant()
    def nothing_is_lost_and_repeats_are_marked(self) -> None:
        if not hasattr(self, "delivered"):
            return
        seen = 0
        for number, marked in self.delivered:
            assert number <= seen + 1, f"message {seen + 1} was lost"
            assert number == seen + 1 or marked, f"message {number} came again and did not say so"
            if not self.lossy:
                assert number == seen + 1, f"message {number} came twice although no broker died"
            seen = max(seen, number)

    def teardown(self) -> None:
        if not hasattr(self, "delivered"):
            return
        for _ in range(60):  # let everything settle: the host that runs the domain attends to it
            while self.script:
                self.the_hypervisor_goes_on()
            for name in self.all:
                self.broker_starts(name)
                self.mail_arrives(name)
        if self.at is not None:
            self.time_passes(5.0)
            assert self.all[self.at].custody.attends(D)
            self.traffic_flows(acknowledge=True)
            assert self.agent.acknowledged == self.agent.sent


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=200, stateful_step_count=60)
