"""Files of jobs: served to those who have to do with the job, and to no other member."""

from __future__ import annotations

import asyncio
from pathlib import Path

from blake3 import blake3

from p2pcompute.node.blob_exchange import BlobMessage
from p2pcompute.transport.messages import MessageType, Purpose
from tests.e2e.mesh import Mesh
from tests.fuzz.attacker import Attacker, encode


def test_a_member_without_a_lease_is_told_that_there_is_nothing(mesh: Mesh, tmp_path: Path) -> None:
    """Who has seen a digest (in a log, in a ticket) would read what others compute on, or learn who has which file."""
    ada, bob = mesh.add("ada").start(), mesh.add("bob").start()
    token = ada.p2pc("invite", "--token", "--uses", "2").check().out.strip()
    bob.p2pc("join", token, "--accept", "all").check()
    mesh.meet([ada, bob])
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(range(256)) * 4096)
    words = ("run", "--verify", "none", "--on", "bob", "--share", "secret.bin", "wc -c <secret.bin; : {}", ":::", "1")
    ran = ada.p2pc(*words, cwd=tmp_path).check()
    assert ran.lines == [str(secret.stat().st_size)], "who has a lease gets it"
    digest = blake3(secret.read_bytes()).digest()

    async def ask() -> list[tuple[int, object]]:
        eve = Attacker()
        await eve.join(token)
        answers = []
        try:
            for wanted in (digest, bytes(32)):
                raw = await eve.channel(Purpose.BLOB)
                for message, body in (
                    (BlobMessage.MANIFEST, [wanted, secret.stat().st_size, 0]),
                    (BlobMessage.CHUNK, [wanted, secret.stat().st_size, 0]),
                ):
                    raw.send(encode([int(message), 1, body]))
                    answers.append(await raw.next(10.0))
                raw.close()
        finally:
            await eve.close()
        return answers

    answers = asyncio.run(ask())
    assert {kind for kind, _body in answers} == {MessageType.ERROR}, answers
    assert len({str(body) for _kind, body in answers}) == 1, "nor is it told which of these there are"
