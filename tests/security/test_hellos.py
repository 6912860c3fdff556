"""A member that says nonsense of itself: it is a member all the same, and nobody is shown the nonsense."""

from __future__ import annotations

import asyncio
from typing import Any

from p2pcompute.node.membership import GroupCredentials
from p2pcompute.transport.messages import Purpose
from tests.e2e.mesh import Mesh, until
from tests.fuzz.attacker import Attacker

WRONG: dict[str, Any] = {
    "boot": [1],
    "build": "\x1b]0;PWN\x07\x1b[31mv\r\n",
    "python": ["\x1b[31mEVIL", "\x07"],
    "slots": -5,
    "port": 1,
    "keeps": {},
    "proofs": 5,
    "machine": "\x1b[2J",
}


class Teller(Attacker):
    """A member that says this of itself."""

    def _credentials(self) -> GroupCredentials:
        return GroupCredentials(self.host, self.identity, self.group, "eve", lambda: WRONG)


def test_what_a_peer_says_of_itself_is_checked_before_it_is_shown(mesh: Mesh) -> None:
    ada = mesh.add("ada", P2PC_NODE__SLOTS="1").start()
    token = ada.p2pc("invite", "--token").check().out.strip()

    async def shown() -> tuple[dict[str, Any], dict[str, Any], str]:
        eve = Teller()
        await eve.join(token)
        raw = await eve.channel(Purpose.CONTROL)
        try:
            await asyncio.to_thread(until, lambda: "eve" in ada.peers(), 10, "ada shows eve")
            peers = (await asyncio.to_thread(ada.get, "/v1/peers"))["items"]
            said = await asyncio.to_thread(ada.p2pc, "peers")
            status = await asyncio.to_thread(ada.p2pc, "status")
            (peer,) = [item for item in peers if item["name"] == "eve"]
            return peer, await asyncio.to_thread(ada.get, "/v1/status"), said.check().out + status.check().out
        finally:
            raw.close()
            await eve.close()

    peer, status, text = asyncio.run(shown())
    assert (peer["slots"], peer["busy"], peer["version"], peer["python"]) == (None, None, "", ""), peer
    assert status["slots"] == {"total": 1, "busy": 0}
    assert "-4" not in text and "EVIL" not in text and "PWN" not in text and "\x1b" not in text, text
