"""What a member that has turned bad says about the group: who is removed, what anybody may do, who has lied."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from dataclasses import replace
from typing import Any

from p2pcompute.errors import P2pcError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import ROLES, Identity, create_identity
from p2pcompute.ids import format_device_id, parse_device_id
from p2pcompute.node.evidence import PROOF
from p2pcompute.node.log_exchange import LOG_NEWS
from p2pcompute.scheduler.bundles import make_evidence
from p2pcompute.scheduler.messages import CLAIMS_CONTENT_TYPE
from p2pcompute.transport.messages import MessageType, Purpose
from p2pcompute.trust.groups import ADMIT_TYPE
from p2pcompute.trust.log import LOG_TYPE
from tests.e2e.mesh import Daemon, Mesh, until
from tests.e2e.test_removal import may
from tests.fuzz.attacker import Attacker, encode
from tests.security.test_network_key import group_of

CRYPTO = RealCrypto()
EVERYTHING = list(ROLES)


def digest(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


def entry(eve: Attacker, kind: str, chain: list[bytes] | None = None, **more: Any) -> list[Any]:
    """An entry of the log that eve signs, as somebody else if she likes."""
    chain = list(eve.group.chain) if chain is None else chain
    head = {"group": eve.group.group_id, "kind": kind, "as": digest(chain[-1]), "after": [], "issued": int(time.time())}
    return [eve.identity.sign_envelope(LOG_TYPE, {**head, **more}), chain]


def limit(eve: Attacker, subject: bytes, chain: list[bytes] | None = None, roles: tuple[str, ...] = ()) -> list[Any]:
    return entry(eve, "limit", chain, subject=subject, name="bob", roles=list(roles), accepts=[], reason="so there")


def admission(by: Attacker, subject: bytes, roles: list[str], **more: Any) -> list[bytes]:
    """A chain at whose end eve admits somebody."""
    now = int(time.time())
    body = {"group": by.group.group_id, "subject": subject, "roles": roles, "issued": now - 60, **more}
    body = {"previous": digest(by.group.chain[-1]), **body}
    if "heir" not in more:
        body["expires"] = now + 86400
    return [*by.group.chain, by.identity.sign_envelope(ADMIT_TYPE, body)]


def claims(by: Identity, value: bytes, job: bytes = b"j" * 32) -> bytes:
    body = {"job": job, "boot": b"12345678", "claims": [[0, 0, 1, "ok", digest(value)]]}
    return by.sign_envelope(CLAIMS_CONTENT_TYPE, body)


def forgeries(eve: Attacker, bob: bytes, mallory: bytes) -> list[list[Any]]:
    """(message, body) of what a member may not say."""
    founder_chain = [eve.group.chain[0]]
    flipped = limit(eve, bob)
    flipped[0] = flipped[0][:-1] + bytes([flipped[0][-1] ^ 1])
    entries = [
        limit(eve, bob),
        limit(eve, bob, founder_chain),
        limit(eve, eve.group.founder),
        flipped,
        limit(eve, eve.identity.public_key, roles=ROLES),
        entry(eve, "policy", policy={"open": 0}),
        entry(eve, "policy", policy={"accept": "job.name=='eve'"}),
        entry(eve, "rotate", key=bytes(32)),
    ]
    chains = [
        admission(eve, mallory, EVERYTHING),
        admission(eve, mallory, ["submit"], heir=True),
        admission(eve, mallory, EVERYTHING, heir=True),
        admission(eve, mallory, ["submit", "invite"], stranger=True),
        admission(eve, eve.identity.public_key, EVERYTHING),
        admission(eve, mallory, ["submit", "work"], previous=bytes(32)),
        [*founder_chain, admission(eve, mallory, ["submit", "work"])[-1]],
    ]
    one, two = claims(eve.identity, b"1"), claims(eve.identity, b"2")
    stolen = claims(eve.identity, b"2").replace(eve.identity.public_key, bob)
    proofs = [
        make_evidence([one]),
        make_evidence([one, one]),
        make_evidence([one, claims(create_identity(CRYPTO), b"2")]),
        make_evidence([stolen, one]),
        make_evidence([two, claims(eve.identity, b"1", b"k" * 32)]),
    ]
    return (
        [[LOG_NEWS, [[one], []]] for one in entries]
        + [[LOG_NEWS, [[], [chain]]] for chain in chains]
        + [[PROOF, [proof]] for proof in proofs]
    )


async def say(eve: Attacker, messages: list[list[Any]]) -> None:
    """Say each on a channel of its own: a forged one may end it."""
    for message, body in messages:
        raw = await eve.channel(Purpose.CONTROL)
        raw.send(encode([message, 0, body]))
        raw.send(encode([int(MessageType.PING), 1, None]))
        with contextlib.suppress(P2pcError, OSError, TimeoutError):  # to be cut off is an answer, too
            while (await raw.next(5.0))[0] != MessageType.PONG:
                pass
        raw.close()


def view(daemon: Daemon) -> tuple[Any, ...]:
    items = {item["name"]: (item["roles"], item["removed"], item["level"]) for item in daemon.get("/v1/trust")["items"]}
    policy = daemon.get("/v1/policy")
    return items["ada"], items["bob"], len(items), policy["accept"], policy["open"]


def test_a_member_cannot_speak_for_those_who_may(mesh: Mesh) -> None:
    """Forged removals, more rights than it has, policies, heirs, and proofs that prove nothing: nothing changes."""
    ada, bob = mesh.add("ada").start(), mesh.add("bob").start()
    token = ada.p2pc("invite", "--token", "--uses", "2").check().out.strip()
    bob.connection().request("POST", "/v1/join", {"token": token, "name": None})
    mesh.meet([ada, bob])
    bob_key = parse_device_id(bob.get("/v1/status")["node"]["id"])
    mallory = Attacker()

    async def turn_bad() -> Attacker:
        eve = Attacker()
        await eve.join(token)
        await say(eve, [[LOG_NEWS, [[], []]]])
        before = await asyncio.to_thread(lambda: [view(daemon) for daemon in (ada, bob)])
        await say(eve, forgeries(eve, bob_key, mallory.identity.public_key))
        await asyncio.sleep(1.0)
        after = await asyncio.to_thread(lambda: [view(daemon) for daemon in (ada, bob)])
        assert after == before
        await eve.close()
        return eve

    eve = asyncio.run(turn_bad())
    eve_id = format_device_id(eve.identity.public_key)
    evidence = [ada.get(f"/v1/trust/{bob.get('/v1/status')['node']['id']}/evidence")["banned"]]
    assert evidence == [None], "bob is no liar"
    assert ada.get(f"/v1/trust/{eve_id}/evidence")["banned"] is None, "nor is anybody by half a proof"

    # Removed, she lets somebody in with an earlier date, and herself once more.
    ada.connection().request("POST", f"/v1/members/{eve_id}/remove", {"reason": ""})
    until(lambda: may(bob).get("eve", []) is None, 10, "bob knows")

    async def come_back() -> list[int]:
        answers = []
        group = replace(eve.group, network_key=group_of(ada.home).network_key)
        for identity, chain in (
            (mallory.identity, admission(eve, mallory.identity.public_key, ["submit", "work"])),
            (eve.identity, admission(eve, eve.identity.public_key, ["submit", "work"])),
            (eve.identity, list(eve.group.chain)),
        ):
            back = Attacker()
            back.identity, back.group = identity, group.with_chain(chain)
            back.target, back.target_key = eve.target, eve.target_key
            raw = await back.knock()
            raw.send(encode([int(MessageType.AUTH), 0, back.auth(raw)]))
            answers.append((await raw.next(5.0))[0])
            raw.close()
            await back.close()
        return answers

    assert asyncio.run(come_back()) == [MessageType.ERROR] * 3
