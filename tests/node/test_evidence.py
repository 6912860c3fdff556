"""Proofs that go round: what counts, what is kept, and what a flood of them costs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from p2pcompute.errors import RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Host
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity, create_identity
from p2pcompute.limits import PROOF_BYTES_MAX, PROOFS_MAX
from p2pcompute.node import evidence as module
from p2pcompute.node.evidence import EvidenceExchange
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.scheduler import bundles
from p2pcompute.scheduler.bundles import check_evidence, find_equivocation, make_bundle, make_evidence
from p2pcompute.scheduler.messages import CLAIMS_CONTENT_TYPE
from p2pcompute.simulation.host import Simulation
from p2pcompute.simulation.mesh import Mesh
from p2pcompute.simulation.runner import RunnerModel
from p2pcompute.trust.groups import admit, found_group
from p2pcompute.trust.levels import Level

CRYPTO = RealCrypto()
ADA, BOB, EVE = (create_identity(CRYPTO) for _ in range(3))


def claims(
    by: Identity, value: bytes, *, attempt: int = 1, boot: bytes = b"boot", status: str = "ok", more: int = 0
) -> bytes:
    """What a worker says of task 0, and of so many more."""
    digest = hashlib.sha256(value).digest()
    other = [[index + 1, 0, 1, "ok", bytes(32)] for index in range(more)]
    body = {"job": bytes(32), "boot": boot, "claims": [[0, 0, attempt, status, digest], *other]}
    return by.sign_envelope(CLAIMS_CONTENT_TYPE, body)


def proof(by: Identity, *, more: int = 0) -> bytes:
    return make_evidence([claims(by, b"1", more=more), claims(by, b"2", more=more)])


def test_two_results_under_one_lease_are_proof_and_nothing_else_is() -> None:
    """None of these frames an honest node: another life or attempt, a failure, the same twice, two nodes."""
    assert check_evidence(CRYPTO, proof(EVE)) == EVE.public_key
    for second in (
        claims(EVE, b"1"),
        claims(EVE, b"2", attempt=2),
        claims(EVE, b"2", boot=b"later"),
        claims(EVE, b"2", status="failed"),
        claims(BOB, b"2"),
    ):
        with pytest.raises(TrustError):
            check_evidence(CRYPTO, make_evidence([claims(EVE, b"1"), second]))
    nameless = [claims(EVE, b"1", boot=b""), claims(EVE, b"2", boot=b"")]
    with pytest.raises(TrustError):
        check_evidence(CRYPTO, make_evidence(nameless))
    assert find_equivocation(CRYPTO, nameless, EVE.public_key) is None
    both = make_evidence([claims(EVE, b"1"), claims(EVE, b"2"), claims(BOB, b"1"), claims(BOB, b"2")])
    with pytest.raises(TrustError, match="one node"):
        check_evidence(CRYPTO, both)


def test_what_comes_unasked_costs_no_more_than_two_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle in the place of evidence, or evidence of hundreds of claims, is refused before anything is checked."""
    looked: list[bytes] = []
    monkeypatch.setattr(bundles, "_claims", lambda _crypto, raw: looked.append(raw))
    monkeypatch.setattr(bundles, "open_job", lambda _crypto, raw, **_: looked.append(raw))
    for data in (make_bundle(b"envelope", [b"fact"], []), make_evidence([b"claim"] * 400)):
        with pytest.raises(TrustError, match="not evidence"):
            check_evidence(CRYPTO, data)
    assert not looked


class NoChannels:
    """Nobody is connected."""

    def on_request(self, _type: int, _answer: Any) -> None: ...

    def on_message(self, _type: int, _answer: Any) -> None: ...

    def all(self) -> list[Any]:
        return []


def exchange_of_ada(
    convicted: list[bytes], others: Sequence[Identity] = (), *, strangers: Sequence[Identity] = ()
) -> EvidenceExchange:
    """Ada's; bob, eve and these others are members, nobody else is."""
    absent: Any = None
    clock = RealClock()
    host = Host(clock=clock, rng=SystemRng(), crypto=CRYPTO, net=absent, store=absent, runner=absent, probe=absent)
    group = found_group(ADA, CRYPTO, "lab", clock.wall())
    credentials = GroupCredentials(host, ADA, group, "ada", dict)
    for member in (BOB, EVE, *others):
        entry = admit(
            ADA, group, CRYPTO, member.public_key, roles=("work",), wall=clock.wall(), is_stranger=member in strangers
        )
        credentials.roster.check(member.public_key, [*group.chain, entry], clock.wall())
    channels: Any = NoChannels()
    return EvidenceExchange(host, credentials, channels, None, TaskScope("test"), convicted.append)


async def test_a_proof_counts_once_and_only_about_members() -> None:
    convicted: list[bytes] = []
    exchange = exchange_of_ada(convicted)
    for one in (proof(EVE), proof(EVE), proof(create_identity(CRYPTO)), proof(ADA)):
        exchange._take(one)
    assert convicted == [EVE.public_key] and exchange.get(EVE.public_key) == proof(EVE)
    assert exchange.digest and not exchange.get(ADA.public_key)
    for junk in (b"", b"x" * (PROOF_BYTES_MAX + 1), make_evidence([claims(BOB, b"1")]), proof(BOB)[:-1], None, 5):
        with pytest.raises(RemoteProtocolError):
            exchange._take(junk)
    assert convicted == [EVE.public_key] and exchange.refused_count == 6


async def test_a_proof_that_was_heard_is_there_when_its_subject_is_banned() -> None:
    """Else every proof that goes round would make each node look through all its jobs for one of its own."""
    exchange = exchange_of_ada([])
    known: list[bytes] = []
    exchange._convict = lambda installation: known.append(exchange.get(installation))
    exchange._take(proof(EVE))
    assert known == [proof(EVE)]


async def test_when_there_is_no_room_a_proof_still_counts_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROOFS_MAX", 1)
    convicted: list[bytes] = []
    exchange = exchange_of_ada(convicted)
    exchange._take(proof(EVE))
    exchange._take(proof(BOB))
    assert convicted == [EVE.public_key, BOB.public_key]
    assert sum(bool(exchange.get(one.public_key)) for one in (EVE, BOB)) == 1


async def test_nobody_fills_the_room_for_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when liars with large proofs keep those about others from going round, or nodes keep different ones."""
    monkeypatch.setattr(module, "PROOFS_BYTES_MAX", 3000)
    liars = [create_identity(CRYPTO) for _ in range(6)]
    proofs = [proof(liar, more=number) for liar, number in zip(liars, (20, 19, 15, 5, 0, 0), strict=True)]
    kept = []
    for order in (range(6), reversed(range(6)), (3, 0, 5, 2, 4, 1)):
        convicted: list[bytes] = []
        exchange = exchange_of_ada(convicted, liars)
        for number in order:
            exchange._take(proofs[number])
        assert len(convicted) == 6 and exchange._bytes == sum(map(len, exchange._proofs.values())) <= 3000
        kept.append((exchange.digest, [bool(exchange.get(liar.public_key)) for liar in liars]))
    assert kept[0][1] == [False, False, False, True, True, True] and kept[1] == kept[2] == kept[0]


async def test_proofs_about_strangers_make_room_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever makes keys for himself in an open group, which all lie, hides who lies of those who are known."""
    monkeypatch.setattr(module, "PROOFS_MAX", 1)
    exchange = exchange_of_ada([], strangers=[BOB])
    exchange._take(proof(BOB))
    exchange._take(proof(EVE, more=5))
    assert exchange.get(EVE.public_key) and not exchange.get(BOB.public_key)


def test_of_several_proofs_the_smallest_is_found() -> None:
    large, small = claims(EVE, b"1", more=20), claims(EVE, b"1")
    for facts in ([large, claims(EVE, b"2", more=9), small, claims(EVE, b"3")], [large, claims(EVE, b"3"), small]):
        assert find_equivocation(CRYPTO, facts, EVE.public_key) in (
            make_evidence([small, claims(EVE, b"3")]),
            make_evidence([claims(EVE, b"3"), small]),
        )


async def test_who_asks_gets_what_he_lacks() -> None:
    exchange = exchange_of_ada([])
    exchange._take(proof(EVE))
    exchange._take(proof(BOB))
    channel: Any = None
    assert await exchange._on_asked(channel, [[EVE.public_key[:8]]]) == [[proof(BOB)]]
    for junk in (None, [], [[b"short"]], [["x" * 8]], [[bytes(8)] * (PROOFS_MAX + 1)]):
        with pytest.raises(RemoteProtocolError):
            await exchange._on_asked(channel, junk)


def test_a_ban_by_a_proof_of_others_is_of_the_moment_when_it_came() -> None:
    """Not of the last result that came here, nor of none: who looks for what happened then finds nothing."""
    with Simulation(1) as simulation:
        mesh = Mesh(simulation, 2, runner=RunnerModel(slot_count=1), level=Level.MEMBER, custodians=0)

        async def main() -> None:
            await mesh.start()
            await asyncio.sleep(100)
            ada, eve = mesh.members
            ada.running._convict(eve.identity.installation)
            record = ada.running.scheduler.acceptance.records[eve.identity.installation]
            assert record.banned and record.banned_at == int(ada.host.clock.wall()) > 0

        simulation.run(main(), time_s_max=200)
        mesh.check_errors()
