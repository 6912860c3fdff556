"""Members that have turned bad: what they put where others look, and where they want others' work to go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.dht.records import make_ad, make_record, record_key
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload, encode_payload, encode_spec
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.keys import Identity, create_identity
from p2pcompute.limits import JOB_AGE_S_MAX, JOB_SKEW_S_MAX, MANIFEST_S
from p2pcompute.scheduler.books import Grant, GrantedTask
from p2pcompute.scheduler.custody import coordinator_of
from p2pcompute.scheduler.manifests import sign_manifest
from p2pcompute.scheduler.messages import Message, grant_body
from p2pcompute.scheduler.terms import JobTerms, job_id_of, open_job, seal_job
from p2pcompute.transport.messages import Purpose
from tests.e2e.mesh import Mesh, until
from tests.fuzz.attacker import Attacker, encode
from tests.security.test_joining import port_of
from tests.security.test_network_key import ForeignDht, group_of, stranger_in_the_dht

CRYPTO = RealCrypto()


def ask(dht: ForeignDht, work: Coroutine[Any, Any, Any]) -> Any:
    """Have something done in the loop of a node of ours."""
    return asyncio.run_coroutine_threadsafe(work, dht.loop).result(20)


def test_nobody_speaks_under_a_jobs_key_but_who_published_it(mesh: Mesh) -> None:
    """Others' records under a job's key would send its workers anywhere; old ones of its own would take it back."""
    ada = mesh.add("ada").start()
    ada.p2pc("invite", "--token").check()
    group, port = group_of(ada.home), port_of(ada)
    owner, mallory = create_identity(CRYPTO), create_identity(CRYPTO)
    key, wall = record_key(owner.public_key, b"job"), time.time()

    def record(by: Identity, seq: int, value: bytes) -> Any:
        return make_record(by.sign_envelope, by.public_key, salt=b"job", seq=seq, wall=wall, ttl_s=600, value=value)

    good = record(owner, 5, b"good")
    with stranger_in_the_dht(group, port) as evil:
        until(evil.contacts, 20, "the stranger is a contact")
        assert ask(evil, evil.put(good)) >= 1
        payload = [owner.public_key, key, b"job", 9, int(wall), 600, b"evil"]
        forged = mallory.sign_envelope("p2pc/record", payload)
        flipped = bytearray(record(owner, 9, b"evil").raw)
        flipped[-1] ^= 1
        poison = [
            replace(good, raw=forged, seq=9),  # signed by another
            replace(good, raw=bytes(flipped), seq=9),  # signed by nobody
            replace(record(mallory, 9, b"evil"), key=key),  # another's, put here
            record(owner, 4, b"evil"),  # the owner's own, from before
        ]
        for one in poison:
            ask(evil, evil.put(one))
        ad = make_ad(mallory.sign_envelope, mallory.public_key, key=key, seq=1, wall=wall, ttl_s=600, value=b"evil")
        ask(evil, evil.put(ad))
        with stranger_in_the_dht(group, port) as reader:
            until(reader.contacts, 20, "the reader is a contact")
            found = ask(reader, reader.get(key))
        assert [one.value for one in found if one.publisher == owner.public_key] == [b"good"]
        assert all(one.kind == "p2pc/ad" for one in found if one.publisher != owner.public_key), (
            "told apart by its kind"
        )


@given(st.integers(0, 2**62), st.integers(0, 3))
def test_an_epoch_leads_to_those_whom_the_submitter_named(epoch: int, custodians: int) -> None:
    """A custodian says what number it likes: it cannot name anybody else."""
    ada = create_identity(CRYPTO)
    keys = tuple(bytes([number + 1]) * 32 for number in range(custodians))
    job = open_job(CRYPTO, seal_job(ada, JobTerms(custodians=keys), b"", b"n"), wall=0.0)
    assert coordinator_of(job, epoch) in (ada.public_key, *keys)


def test_grants_are_taken_for_coordinators_of_fresh_jobs_only(mesh: Mesh) -> None:
    """A redirecting custodian, and one that has an old job of its submitter run again."""
    ada = mesh.add("ada").start()
    token = ada.p2pc("invite", "--token").check().out.strip()
    spec = encode_spec(JobSpec(kind=TaskKind.COMMAND))
    tasks = (GrantedTask(0, 0, 1, encode_payload(TaskPayload(argv=("true",)))),)

    async def answers() -> list[list[Any]]:
        eve = Attacker()
        await eve.join(token)
        somebody, owner = create_identity(CRYPTO), create_identity(CRYPTO)
        now_ms = int(1000 * time.time())
        fresh = seal_job(owner, JobTerms(custodians=(eve.identity.public_key,), created_ms=now_ms), spec, b"n")
        old_terms = JobTerms(custodians=(eve.identity.public_key,), created_ms=now_ms - int(1000 * JOB_AGE_S_MAX) - 1)
        old = seal_job(owner, old_terms, spec, b"n")
        forged = fresh[:-1] + bytes([fresh[-1] ^ 1])
        raw = await eve.channel(Purpose.CONTROL)
        found = []
        try:
            for number, (envelope, coordinator) in enumerate(
                [(fresh, somebody.public_key), (old, eve.identity.public_key), (forged, b"")]
            ):
                grant = Grant(number, 1, b"", job_id_of(envelope), coordinator, 30.0, tasks, 0, True, 0.0)
                raw.send(encode([int(Message.GRANT), 0, grant_body(grant, envelope, coordinator, [])]))
                while True:
                    kind, body = await raw.next(10.0)
                    if kind == Message.GRANT_ACK:
                        found.append(body)
                        break
        finally:
            raw.close()
            await eve.close()
        return found

    assert asyncio.run(answers()) == [[0, False, True], [1, False, True], [2, False]]
    assert ada.get("/v1/status")["slots"]["busy"] == 0


def test_who_passes_tasks_on_shows_that_their_coordinator_gave_them(mesh: Mesh) -> None:
    """Else a member has commands of its own run as somebody else's job: without a sandbox where that job is from, and
    with results that are believed."""
    ada = mesh.add("ada").start()
    token = ada.p2pc("invite", "--token", "--uses", "2").check().out.strip()
    real, other = ((GrantedTask(0, 0, 1, encode_payload(TaskPayload(argv=(word,)))),) for word in ("true", "false"))
    keeper, wall = create_identity(CRYPTO), time.time()

    def grant(job_id: bytes, tasks: tuple[GrantedTask, ...], number: int = 0, epoch: int = 0) -> Grant:
        return Grant(number, 1, b"", job_id, keeper.public_key, 30.0, tasks, epoch)

    async def answers() -> list[tuple[str, bool]]:
        eve, bob = Attacker(), Attacker()
        await eve.join(token)
        await bob.join(token)
        terms = JobTerms(custodians=(keeper.public_key,), created_ms=int(1000 * wall))
        job = seal_job(bob.identity, terms, encode_spec(JobSpec(kind=TaskKind.COMMAND)), b"n")
        given = grant(job_id_of(job), real)
        word = sign_manifest(keeper, given, wall=wall)
        old = sign_manifest(keeper, given, wall=wall - MANIFEST_S - JOB_SKEW_S_MAX - 60)
        later = replace(given, tasks=(replace(real[0], attempt=2),))
        saved = replace(given, tasks=(replace(real[0], cookie=b"poison"),))
        tries = {
            "no word": given,
            "her own word": replace(given, manifest=sign_manifest(eve.identity, given, wall=wall)),
            "of another job": replace(given, manifest=sign_manifest(keeper, grant(b"j" * 32, real), wall=wall)),
            "another task": replace(grant(given.job_id, other), manifest=word),
            "another attempt": replace(later, manifest=word),
            "a checkpoint of hers": replace(saved, manifest=word),
            "long ago": replace(given, manifest=old),
            "changed": replace(given, manifest=word[:-1] + bytes([word[-1] ^ 1])),
            "junk": replace(given, manifest=b"\xff" * 99),
            "a later epoch": replace(given, epoch=1, manifest=word),
            "its coordinator's word": replace(given, manifest=word),
        }
        raw = await eve.channel(Purpose.CONTROL)
        found = []
        try:
            for number, (what, one) in enumerate(tries.items()):
                body = grant_body(replace(one, grant_id=number), job, keeper.public_key, [])
                raw.send(encode([int(Message.GRANT), 0, body]))
                while True:
                    kind, answer = await raw.next(10.0)
                    if kind == Message.GRANT_ACK:
                        found.append((what, answer[1]))
                        break
        finally:
            raw.close()
            await eve.close()
            await bob.close()
        return found

    *refused, taken = asyncio.run(answers())
    assert [what for what, is_taken in refused if is_taken] == [] and len(refused) == 10
    assert taken == ("its coordinator's word", True), "workers give on what they have not begun"
