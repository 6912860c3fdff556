"""Attacks on those who join, and on those who let them in: real daemons on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator

from p2pcompute.host.interfaces import LanAnnouncement
from p2pcompute.host.real_net import RealNet
from p2pcompute.node.doors import MEET
from tests.e2e.mesh import Daemon, Mesh
from tests.e2e.test_words import invite
from tests.security.stranger import Closed, Stranger


def port_of(daemon: Daemon) -> int:
    port: int = daemon.get("/v1/status")["node"]["port"]
    return port


@contextlib.contextmanager
def announced(announcement: LanAnnouncement) -> Iterator[None]:
    """Announce something on the local network while the context lasts."""
    is_there, is_over = threading.Event(), threading.Event()

    async def announce() -> None:
        net = RealNet(interfaces=["lo"])
        await net.announce(announcement)
        await asyncio.sleep(2)  # mDNS probes first
        is_there.set()
        await asyncio.to_thread(is_over.wait)
        await net.close()

    thread = threading.Thread(target=asyncio.run, args=(announce(),))
    thread.start()
    try:
        assert is_there.wait(20)
        yield
    finally:
        is_over.set()
        thread.join()


def test_two_inviters_on_one_network_use_different_numbers(mesh: Mesh) -> None:
    """Otherwise joiners cannot tell which is meant, and are kept out by accident."""
    ada, eve, bob = mesh.add("ada").start(), mesh.add("eve").start(), mesh.add("bob").start()
    (first, code), (second, other) = invite(ada), invite(eve)
    assert code.partition("-")[0] != other.partition("-")[0]
    bob.p2pc("join", code, "--accept", "all").check()
    assert first.finish().code == 0
    second.process.send_signal(signal.SIGINT)
    assert second.finish().code == 130


def test_who_announces_anothers_number_is_not_tried(mesh: Mesh) -> None:
    """One guess for each who is fooled would be enough, after some thousand of them."""
    ada, bob = mesh.add("ada").start(), mesh.add("bob").start()
    command, code = invite(ada)
    number = int(code.partition("-")[0])
    impostor = LanAnnouncement(public_key=bytes(range(32)), name="ada", port=9, group_hint=b"hint", invites=(number,))
    with announced(impostor):
        refused = bob.p2pc("join", code, "--accept", "all")
        assert refused.code == 6 and "2 nodes announce" in refused.err and "@HOST:PORT" in refused.err, refused.err
        bob.p2pc("join", code, "--via", f"127.0.0.1:{port_of(ada)}", "--accept", "all").check()
    assert command.finish().code == 0


def test_a_flood_of_strangers_keeps_no_joiner_out(mesh: Mesh) -> None:
    """Connections that say nothing, and others that begin one exchange after the other, all the time."""
    ada, bob = mesh.add("ada").start(), mesh.add("bob").start()
    command, code = invite(ada)
    number, port = int(code.partition("-")[0]), port_of(ada)
    is_over = threading.Event()
    met: list[int] = []

    def flood(place: int) -> None:
        silent: list[Stranger] = []
        while not is_over.is_set():
            with contextlib.suppress(Closed, OSError):
                silent.append(Stranger(port, host=f"127.0.0.{place}"))
                talker = Stranger(port, host=f"127.0.0.{place}")
                silent.append(talker)
                talker.prove()
                talker.send(MEET, ["words", [number, bytes(33)], "x"], 1)
                talker.send(MEET, ["words", [number, b"\x41" + bytes(32)], "x"], 2)
                met.append(talker.receive()[0])
            while len(silent) > 20:
                silent.pop(0).close()
        for one in silent:
            one.close()

    threads = [threading.Thread(target=flood, args=(place,)) for place in (2, 3)]
    for thread in threads:
        thread.start()
    try:
        joined = bob.p2pc("join", f"{code}@127.0.0.1:{port}", "--accept", "all")
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    joined.check()
    assert met, "the attack has reached the exchange"
    assert command.finish().code == 0
