"""What somebody can do who has the network key and is no member."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from p2pcompute.dht.contacts import Contact
from p2pcompute.dht.messages import ANYONE, MessageType, Ping, Ring, decode_statement, encode_statement
from p2pcompute.dht.service import Dht
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import create_identity
from p2pcompute.limits import DHT_UNASKED_BURST, DHT_UNASKED_PER_S
from p2pcompute.transport.datagrams import HEAD_BYTES, Datagrams, seal_datagram
from p2pcompute.trust.group_file import load_group
from p2pcompute.trust.groups import Group
from tests.e2e.mesh import Mesh, until
from tests.security.test_joining import port_of


def group_of(directory: Path) -> Group:
    """The group that is kept somewhere under a daemon's home."""
    (file,) = directory.rglob("group.cbor")
    group = load_group(file.parent)
    assert group is not None
    return group


class ForeignDht(Dht):
    """One that runs in a loop of its own."""

    loop: asyncio.AbstractEventLoop


@contextlib.contextmanager
def stranger_in_the_dht(group: Group, port: int) -> Iterator[ForeignDht]:
    """Take part in a group's DHT with a key of one's own and no membership."""
    is_there, is_over = threading.Event(), threading.Event()
    made: list[ForeignDht] = []

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
        dht = ForeignDht(host, create_identity(crypto), bound, scope, group_id=group.group_id, name="mallory")
        bound.receive = dht.receive
        dht.loop = asyncio.get_running_loop()
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


@contextlib.contextmanager
def victim() -> Iterator[socket.socket]:
    """Somebody who has nothing to do with it all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.setblocking(False)
        yield sock


def heard(sock: socket.socket, for_s: float) -> list[bytes]:
    """Datagrams that come within a time."""
    found = []
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s:
        try:
            found.append(sock.recv(2000))
        except BlockingIOError:
            time.sleep(0.01)
    return found


def test_forged_sources_bring_little_upon_a_victim(mesh: Mesh) -> None:
    """Requests that seem to come from the victim bring it no more than half of their bytes besides."""
    ada = mesh.add("ada").start()
    ada.p2pc("invite", "--token").check()
    group, port = group_of(ada.home), port_of(ada)
    crypto = RealCrypto()
    sent = 0
    with victim() as sock:
        for _ in range(60):
            mallory = create_identity(crypto)
            body = encode_statement(
                Ping(), transaction=crypto.random_bytes(8), sender=mallory.public_key, recipient=ANYONE,
                run=crypto.random_bytes(8), group_id=group.group_id, prove=mallory.sign, is_client=False,
            )  # fmt: skip
            data = seal_datagram(group.network_key, body)
            sock.sendto(data, ("127.0.0.1", port))
            sent += len(data)
            time.sleep(0.01)
        datagrams = heard(sock, 6.0)
    kinds = [decode_statement(data[HEAD_BYTES:]).type for data in datagrams]
    assert kinds.count(MessageType.PONG) == 60, "the requests were good ones"
    assert 0 < kinds.count(MessageType.PING) <= DHT_UNASKED_BURST + 8 * DHT_UNASKED_PER_S + 1
    assert sum(map(len, datagrams)) <= 1.5 * sent


def test_contacts_have_nobody_flooded(mesh: Mesh) -> None:
    """Whoever is a contact may ask to have somebody called: also somebody who does not want to be."""
    ada = mesh.add("ada").start()
    ada.p2pc("invite", "--token").check()
    group, port = group_of(ada.home), port_of(ada)
    with victim() as sock, stranger_in_the_dht(group, port) as dht:
        until(dht.contacts, 20, "the stranger is a contact")
        loop = dht.loop
        key = dht.contacts()[0].key
        address = Address("127.0.0.1", port)
        for _ in range(100):
            ring = Ring(Contact(create_identity(RealCrypto()).public_key, Address(*sock.getsockname())))
            loop.call_soon_threadsafe(dht._ask, key, address, [ring], lambda _reply: None)
            time.sleep(0.01)
        datagrams = heard(sock, 4.0)
    assert 0 < len(datagrams) <= DHT_UNASKED_BURST + 6 * DHT_UNASKED_PER_S + 1


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
