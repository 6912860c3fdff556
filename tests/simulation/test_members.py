"""Removal and roles in a group of whole nodes: if these fail, somebody who was removed goes on, or a role is a word."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from p2pcompute.errors import RemoteProtocolError, TrustError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import create_identity, delegate
from p2pcompute.limits import LOG_KEEPERS_ASKED, LOG_RECORDS_MAX
from p2pcompute.node.log_exchange import LOG_NEWS, LogExchange
from p2pcompute.node.log_records import join_pieces, pieces_of, read_piece
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Member, Mesh
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.trust import roster
from p2pcompute.trust.admission import Grant
from p2pcompute.trust.groups import MEMBER_ROLES, admit, found_group
from p2pcompute.trust.log import LOG_TYPE, REMOVED, GroupLog, make_policy
from p2pcompute.trust.policy import GroupPolicy


def key(member: Member) -> bytes:
    return member.identity.public_key


def others(mesh: Mesh, one: Member) -> list[Member]:
    return [member for member in mesh.members if member is not one and member.node is not None]


def holds_of(mesh: Mesh, one: Member) -> int:
    """Tasks of a member's jobs that the others hold, for whomever."""
    count = 0
    for member in others(mesh, one):
        scheduler = member.running.scheduler
        for held in scheduler.worker.core.held.values():
            owned = scheduler.owner.core.jobs.get(held.job_id)
            job = scheduler.worker.jobs.get(held.job_id) if owned is None else owned.envelope
            count += job is not None and job.submitter == key(one) and not held.is_dropped
    return count


async def until(condition: object, limit_s: float) -> None:
    assert callable(condition)
    for _ in range(round(limit_s / 0.1)):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {limit_s:g} s")


@pytest.mark.parametrize("seed", range(2))
def test_all_cut_a_removed_member_off_within_seconds(seed: int) -> None:
    with Simulation(seed) as simulation:
        mesh = Mesh(simulation, 24, runner=RunnerModel(slot_count=2))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(20)
            founder, bad = mesh.members[0], mesh.members[7]
            await mesh.submit(bad, [600.0] * 100)
            await asyncio.sleep(10)
            assert holds_of(mesh, bad) > 40
            await founder.host.call(_remove(founder, bad))
            await until(lambda: holds_of(mesh, bad) == 0, 3.0)
            await asyncio.sleep(2)
            for member in others(mesh, bad):
                assert all(channel.peer.installation != key(bad) for channel in member.running.channels.all())
                assert key(bad) not in member.running.network.peers
            assert bad.running.members.removed_text
            await asyncio.sleep(60)  # it goes on trying to reach them
            assert [peer.state for peer in bad.running.peers()] == ["self"] and bad.running.status().is_removed
            keys = {member.running.credentials.group.network_key for member in others(mesh, bad)}
            assert len(keys) == 1 and bad.group.network_key not in keys
            assert holds_of(mesh, bad) == 0
            assert all(not member.errors for member in mesh.members)

        simulation.run(main())


def test_all_know_all_soon_and_hardly_anything_is_told_twice() -> None:
    """Also who comes later, and what each held before it was restarted; then nobody says anything any more."""
    with Simulation(7) as simulation:
        mesh = Mesh(simulation, 24, runner=RunnerModel(slot_count=1))
        late = mesh.members[-1]

        def said() -> int:
            return sum(member.running.members.exchange.told_count for member in mesh.members if member.node is not None)

        def know(count: int) -> bool:
            rosters = [member.running.credentials.roster for member in mesh.members if member.node is not None]
            return all(len(one) == count for one in rosters) and len({one.digest for one in rosters}) == 1

        async def main() -> None:
            await mesh.start(mesh.members[:-1])
            await until(lambda: know(23), 30.0)
            await mesh.start_one(late)
            await until(lambda: know(24), 30.0)
            await asyncio.sleep(120)
            before = said()
            assert before < 24 * 24
            mesh.crash(late)
            await mesh.restart(late)
            await asyncio.sleep(30)
            assert know(24) and said() - before < 40
            mesh.check_errors()

        simulation.run(main())


def test_who_meets_nobody_that_knows_finds_a_removal_in_the_dht(monkeypatch: pytest.MonkeyPatch) -> None:
    """The founder is away, and those who are there say nothing: they could be new, or friends of the removed."""
    with Simulation(11) as simulation:
        mesh = Mesh(simulation, 12, runner=RunnerModel(slot_count=1))
        founder, away, bad = mesh.members[0], mesh.members[5], mesh.members[7]

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(20)
            mesh.crash(away)
            await founder.host.call(_remove(founder, bad))
            await asyncio.sleep(30)
            mesh.crash(founder)
            mesh.crash(bad)
            monkeypatch.setattr(LogExchange, "_take", lambda *_args: False)
            await mesh.restart(away)
            await asyncio.sleep(15)
            roster = away.running.credentials.roster
            assert key(bad) not in roster.removed(), "nobody has told it"
            await until(lambda: key(bad) in roster.removed(), 120.0)
            records = away.running.members.records
            assert records.learned_count >= 1 and records.asked_count <= LOG_KEEPERS_ASKED
            mesh.check_errors()

        simulation.run(main())


def test_a_log_in_pieces_is_whole_again_or_nothing() -> None:
    crypto = RealCrypto()
    founder = create_identity(crypto)
    group = found_group(founder, crypto, "lab", 1e9)
    log = GroupLog(crypto, group)
    assert pieces_of(log) == []
    for number in range(60):
        entry = make_policy(founder, group, log, crypto, GroupPolicy(accept=f"job.cpus<{number}"), wall=1e9)
        log.add(entry, wall=1e9)
    pieces = [read_piece(piece) for piece in pieces_of(log)]
    assert 10 < len(pieces) <= LOG_RECORDS_MAX and [one[1] for one in pieces] == list(range(len(pieces)))
    entries = join_pieces([one[3] for one in pieces])
    assert entries == [entry.wire for entry in log][-len(entries) :] and len(entries) >= 15
    with pytest.raises(RemoteProtocolError):
        join_pieces([one[3] for one in pieces[:-1]])


async def _remove(by: Member, whom: Member) -> None:
    by.running.remove(key(whom), reason="")


def test_a_member_that_may_not_submit_has_nothing_run_by_way_of_another() -> None:
    """Its custodian, which may submit, acts for it; nobody runs its tasks, nor does the custodian itself."""
    with Simulation(3) as simulation:
        mesh = Mesh(simulation, 5, runner=RunnerModel(slot_count=2))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            founder, worker = mesh.members[0], mesh.members[2]
            await mesh.submit(worker, [300.0] * 60)
            await asyncio.sleep(8)
            assert holds_of(mesh, worker) > 0
            kept = [
                member
                for member in others(mesh, worker)
                if member.running.scheduler.custody is not None and member.running.scheduler.custody.charges
            ]
            assert len(kept) == 2, "its custodians keep it"
            mesh.crash(worker)
            await asyncio.sleep(60)
            assert holds_of(mesh, worker) > 0, "they act for it"
            await founder.host.call(_limit(founder, worker))
            await until(lambda: holds_of(mesh, worker) == 0, 3.0)
            await asyncio.sleep(60)
            assert holds_of(mesh, worker) == 0
            assert all(not member.running.scheduler.owner.core.jobs for member in others(mesh, worker))
            assert all(not member.errors for member in mesh.members)

        simulation.run(main())


async def _limit(by: Member, whom: Member) -> None:
    by.running.set_roles(key(whom), ("work",), reason="")


def test_what_runs_and_would_be_refused_now_ends_and_runs_elsewhere() -> None:
    """A policy, or what an older version must not pass over: no machine goes on with what it would not begin."""
    with Simulation(5) as simulation:
        mesh = Mesh(simulation, 5, runner=RunnerModel(slot_count=2))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            founder, bob = mesh.members[0], mesh.members[2]
            job_id = await mesh.submit(bob, [600.0] * 40)
            own_id = await mesh.submit(founder, [600.0] * 2)
            await until(lambda: holds_of(mesh, bob) > 4, 20.0)
            for policy in ('job.name != "simulated"', ""):
                await founder.host.call(_set_policy(founder, GroupPolicy(accept=policy)))
                await until(lambda ends=bool(policy): (holds_of(mesh, bob) == 0) is ends, 30.0)
            await founder.host.call(_write(founder, {"kind": "vote", "critical": True}))
            await until(lambda: holds_of(mesh, bob) == 0, 3.0)
            await asyncio.sleep(30)
            assert holds_of(mesh, bob) == 0
            for member in mesh.members:
                assert "does not know (1 in its log), so no work of others" in member.running.status().notes[0]
                assert member.running.policy().is_beyond and not member.running.policy().in_force.accept
            for owner, one in ((bob, job_id), (founder, own_id)):
                assert owner.running.job(one.hex()).running == 2, "its own work it does"
                assert owner.running.job(one.hex()).failed == 0
            assert not [error for member in mesh.members for error in member.errors]

        simulation.run(main())


async def _set_policy(by: Member, policy: GroupPolicy) -> None:
    by.running.set_policy(policy)


async def _write(by: Member, body: dict[str, object]) -> None:
    """Put an entry into the log as a later build of the founder's might make it."""
    credentials, wall = by.running.credentials, by.host.clock.wall()
    group = credentials.group
    linked = {"group": group.group_id, "as": hashlib.sha256(group.chain[-1]).digest(), "issued": int(wall)}
    raw = by.identity.sign_envelope(LOG_TYPE, {**linked, "after": list(credentials.roster.log.heads()), **body})
    by.running.members._write([raw, list(group.chain)])


def test_strangers_are_out_when_the_door_is_closed_until_somebody_invites_them() -> None:
    """Otherwise they would be taken for members by those who do not know them, and renewed for ever."""
    with Simulation(7) as simulation:
        mesh = Mesh(simulation, 5)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            founder, eve = mesh.members[0], mesh.members[4]
            await founder.host.call(_set_policy(founder, GroupPolicy(open_bits=0)))
            await founder.host.call(_remove(founder, eve))
            await asyncio.sleep(2)
            await founder.host.call(_let_in(founder, eve, is_stranger=True))
            await until(lambda: _channels_to(mesh, eve) >= 3, 60.0)
            credentials = mesh.members[2].running.credentials
            assert credentials.is_stranger(key(eve))
            before = eve.running.credentials.group.network_key
            await founder.host.call(_set_policy(founder, GroupPolicy()))
            await until(lambda: _channels_to(mesh, eve) == 0, 3.0)
            await asyncio.sleep(60)  # she goes on trying
            keys = {member.running.credentials.group.network_key for member in others(mesh, eve)}
            assert len(keys) == 1 and before not in keys
            assert _channels_to(mesh, eve) == 0 and "open no longer" in eve.running.members.removed_text
            for member in others(mesh, eve):
                assert key(eve) not in member.running.credentials.roster
                assert member.running.credentials.is_stranger(key(eve))
                assert not member.running.scheduler.victim.may_work(key(eve))
            await founder.host.call(_let_in(founder, eve))
            await until(lambda: _channels_to(mesh, eve) >= 3, 60.0)
            assert (
                credentials.membership_of(key(eve))
                and not credentials.is_stranger(key(eve))
                and not eve.running.members.removed_text
            )
            assert not [error for member in mesh.members for error in member.errors]

        simulation.run(main())


def _channels_to(mesh: Mesh, one: Member) -> int:
    channels = (member.running.channels.all() for member in others(mesh, one))
    return sum(any(channel.peer.installation == key(one) for channel in those) for those in channels)


async def _let_in(by: Member, whom: Member, *, is_stranger: bool = False) -> None:
    """Admit a node and let it know, as over a joining channel."""
    credentials, wall = by.running.credentials, by.host.clock.wall()
    roles, log = ("submit", "work"), credentials.roster.log
    group, crypto = credentials.group, by.host.crypto
    entry = admit(by.identity, group, crypto, key(whom), roles=roles, wall=wall, log=log, is_stranger=is_stranger)
    chain = (*group.chain, entry)
    credentials.roster.replace(key(whom), chain, wall)
    by.running.members.exchange.tell([], [chain])
    whom.running.credentials.group = group.with_chain(chain)
    whom.running.members.group_changed()


def test_a_forged_removal_changes_nothing_and_is_not_passed_on() -> None:
    """A member without the role signs one, backdated; another replays a good entry of another group."""
    with Simulation(4) as simulation:
        mesh = Mesh(simulation, 6, runner=RunnerModel(slot_count=1))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(10)
            bad, victim = mesh.members[2], mesh.members[3]
            await bad.host.call(_forge(bad, victim))
            await asyncio.sleep(5)
            for member in mesh.members:
                known = member.running.credentials.roster
                assert len(known.log) == 0 and key(victim) in known
            told = [member.running.credentials.roster.log.refused_count for member in others(mesh, bad)]
            assert sum(told) > 0, "it was heard"
            assert all(not member.errors for member in mesh.members)

        simulation.run(main())


async def _forge(by: Member, whom: Member) -> None:
    group = by.group
    body = {
        "group": group.group_id,
        "kind": "limit",
        "as": hashlib.sha256(group.chain[-1]).digest(),
        "after": [],
        "issued": int(by.host.clock.wall()) - 3600,
        "subject": key(whom),
        "name": "",
        "roles": [],
        "accepts": [],
        "reason": "",
    }
    entry = [by.identity.sign_envelope(LOG_TYPE, body), list(group.chain)]
    for channel in by.running.channels.all():
        channel.send(LOG_NEWS, [[entry], []])


def test_in_a_large_group_a_stranger_among_submitters_is_introduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all members know all others, who passes a task on says whose it is; the work is done everywhere.
    Before that nobody was told of somebody whom it has not met."""
    monkeypatch.setattr(roster, "ROSTER_SHARED_MAX", 4)
    with Simulation(5) as simulation:
        mesh = Mesh(simulation, 12, runner=RunnerModel(slot_count=1))

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(20)
            for member in mesh.members[1:]:
                met = {channel.peer.installation for channel in member.running.channels.all()}
                unmet = set(member.running.credentials.roster) - met - {key(member)}
                assert len(unmet) <= 4, "what it was told when it knew of nobody else yet"
            owner = mesh.members[5]
            job_id = await mesh.submit(owner, [3.0] * 60)
            view = await mesh.wait_for(owner, job_id, limit_s=120)
            assert view.done == 60 and sum(member.host.tally.runs_ok > 0 for member in mesh.members) >= 10
            mesh.check_errors()

        simulation.run(main())


def test_removal_beats_every_standing_way_in_but_no_new_invitation() -> None:
    """Who has the group's pre-shared key, or stands in its list of keys, is let in by it only until he is removed."""
    with Simulation(6) as simulation:
        mesh = Mesh(simulation, 3)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            founder, bad = mesh.members[:2]
            (channel,) = [one for one in founder.running.channels.all() if one.peer.installation == key(bad)]
            credentials = founder.running.credentials
            by_key = Grant(roles=MEMBER_ROLES)
            assert len(credentials.let_in(channel, by_key, "bad", ())) == 5
            await founder.host.call(_remove(founder, bad))
            with pytest.raises(TrustError) as refusal:
                credentials.let_in(channel, by_key, "bad", ())
            assert refusal.value.code == REMOVED
            known = frozenset(entry.id for entry in credentials.roster.removed().values())
            invite = credentials.invites.create(founder.host.clock.now(), removals=known)
            assert len(credentials.let_in(channel, Grant(roles=MEMBER_ROLES, invite=invite), "bad", ())) == 5
            assert key(bad) in credentials.roster

        simulation.run(main())


@pytest.mark.parametrize(
    ("delegated", "left", "submits", "works"),
    [
        (("submit", "work"), ("submit", "work"), True, True),
        (("submit", "work"), ("work",), False, True),
        (("submit", "work"), ("submit",), True, False),
        (("submit",), ("submit", "work"), True, False),
    ],
)
def test_a_program_may_do_what_its_installation_may_and_was_delegated(
    delegated: tuple[str, ...], left: tuple[str, ...], submits: bool, works: bool
) -> None:
    """Embedded nodes have keys of their own: with one, an installation would do what it may not."""
    with Simulation(9) as simulation:
        mesh = Mesh(simulation, 4, runner=RunnerModel(slot_count=2))
        founder, installation, program = mesh.members[0], mesh.members[2], mesh.members[3]
        crypto, wall = program.host.crypto, program.host.clock.wall()
        program.group = installation.group
        program.identity = delegate(installation.identity, crypto, expires_wall=wall + 86400, roles=delegated)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(5)
            await founder.host.call(_set_roles(founder, installation, left))
            await asyncio.sleep(5)
            await mesh.submit(founder, [20.0] * 12)
            await asyncio.sleep(10)
            assert (_held_for(program, key(founder)) > 0) is works, "who has the work looks whom to give it"
            await asyncio.sleep(120)
            await mesh.submit(program, [600.0] * 30)
            await asyncio.sleep(30)
            assert (_held_for(founder, key(installation)) > 0) is submits, "who is to run it looks whose it is"
            mesh.check_errors()

        simulation.run(main())


def _held_for(one: Member, submitter: bytes) -> int:
    """Tasks that a node holds for jobs of others by this installation."""
    worker = one.running.scheduler.worker
    jobs = {job_id for job_id, job in worker.jobs.items() if job.submitter == submitter}
    return sum(held.job_id in jobs and not held.is_dropped for held in worker.core.held.values())


async def _set_roles(by: Member, whom: Member, roles: tuple[str, ...]) -> None:
    by.running.set_roles(key(whom), roles, reason="")
