"""What somebody can do who has the network key and is no member."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from p2pcompute.dht.service import Dht
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import create_identity
from p2pcompute.transport.datagrams import Datagrams
from p2pcompute.trust.groups import Group, load_group
from tests.e2e.mesh import Mesh, until
from tests.security.test_joining import port_of


def group_of(directory: Path) -> Group:
    """The group that is kept somewhere under a daemon's home."""
    (file,) = directory.rglob("group.cbor")
    group = load_group(file.parent)
    assert group is not None
    return group


@contextlib.contextmanager
def stranger_in_the_dht(group: Group, port: int) -> Iterator[Dht]:
    """Take part in a group's DHT with a key of one's own and no membership."""
    is_there, is_over = threading.Event(), threading.Event()
    made: list[Dht] = []

    async def take_part() -> None:
        absent: Any = None
        crypto = RealCrypto()
        net = RealNet(interfaces=["lo"])
        host = Host(
            clock=RealClock(), rng=SystemRng(), crypto=crypto, net=net, store=absent, runner=absent, probe=absent
        )
        scope = TaskScope("stranger")
        datagrams = Datagrams(host, scope)
        await datagrams.start(0, loopback_only=True)
        bound = datagrams.bind_group(group.network_key, lambda _body, _source: None)
        dht = Dht(host, create_identity(crypto), bound, scope, group_id=group.group_id, name="mallory")
        bound.receive = dht.receive
        made.append(dht)
        await dht.start([], [Address("127.0.0.1", port)])
        is_there.set()
        await asyncio.to_thread(is_over.wait)
        await dht.leave()
        await scope.close()
        datagrams.stop()
        await net.close()

    thread = threading.Thread(target=asyncio.run, args=(take_part(),))
    thread.start()
    try:
        assert is_there.wait(10)
        yield made[0]
    finally:
        is_over.set()
        thread.join()


def test_a_stranger_in_the_dht_does_not_count_as_a_member_that_is_up(mesh: Mesh) -> None:
    """Somebody who was removed, or found the key, would look like one more machine that will do the work."""
    ada, bob = mesh.add("ada").start(), mesh.add("bob").start()
    token = ada.p2pc("invite", "--token").check().out.strip()
    bob.p2pc("join", token, "--accept", "all").check()
    mesh.meet([ada, bob])
    with stranger_in_the_dht(group_of(ada.home), port_of(ada)):
        until(lambda: ada.peers().get("mallory"), 20, "the stranger is heard")
        began = time.monotonic()
        while time.monotonic() - began < 6:  # it is dialled meanwhile
            assert ada.peers().get("mallory", "not met") == "not met", ada.peers()
            time.sleep(0.5)
        told = ada.p2pc("status").check().out
        assert "2 of 2 nodes up" in told and "1 more node heard" in told, told
        ran = ada.p2pc("run", "echo {}", ":::", *map(str, range(20))).check()
        assert len(ran.lines) == 20
