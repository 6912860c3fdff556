"""Two machines on one network: network namespaces joined by a cable (veth), a node in each."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.mesh import Mesh, until

NAMES = ("p2pc-a", "p2pc-b")
LAN = ("10.97.1.1", "10.97.1.2")
OTHER = ("10.98.1.1", "10.98.1.2")
"""A second cable between the same machines, which the nodes may not use."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def remove() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def cables() -> Iterator[None]:
    """Namespaces p2pc-a and p2pc-b; lan0 and other0 in each."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("the command ip (iproute2) is not installed")
    remove()
    try:
        try:
            for name in NAMES:
                ip("netns", "add", name)
            for cable, addresses in (("lan0", LAN), ("other0", OTHER)):
                ip("link", "add", cable, "netns", NAMES[0], "type", "veth", "peer", "name", cable, "netns", NAMES[1])
                for name, address in zip(NAMES, addresses, strict=True):
                    ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
                    ip("-n", name, "link", "set", cable, "up")
            for name in NAMES:
                ip("-n", name, "link", "set", "lo", "up")
                ip("-n", name, "route", "add", "default", "dev", "lan0")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        yield
    finally:
        remove()


def test_two_machines(mesh: Mesh, cables: None) -> None:
    """Found by LAN discovery after a restart too; on the allowed interface and on no other."""
    ada, bob = (
        mesh.add(name, prefix=("ip", "netns", "exec", netns), P2PC_NODE__INTERFACES="lan0", P2PC_NODE__SLOTS="2")
        for name, netns in zip(("ada", "bob"), NAMES, strict=True)
    )
    for daemon in (ada, bob):
        daemon.start()
        assert {host for host, _port in daemon.sockets()} <= {"127.0.0.1", "::1"}, "alone: loopback only"
    token = ada.p2pc("invite", "--token").check().out.strip()
    bob.p2pc("join", token, "--accept", "all").check()
    mesh.meet([ada, bob])
    for daemon, address in ((ada, LAN[0]), (bob, LAN[1])):
        mdns = 5353
        assert {host for host, port in daemon.sockets() if port != mdns} == {address}
    ran = ada.p2pc("run", "sleep 0.1; echo $P2PC_NODE {}", ":::", *map(str, range(24))).check()
    assert {line.split()[0] for line in ran.lines} == {"ada", "bob"}
    (peer,) = [peer for peer in ada.get("/v1/peers")["items"] if peer["state"] == "up"]
    assert peer["address"].startswith(LAN[1]), peer
    ports = [daemon.get("/v1/status")["node"]["port"] for daemon in (ada, bob)]
    assert is_silent(NAMES[1], OTHER[0], ports[0]), "nothing answers on the other cable"
    bob.stop()
    ada.wait_ups([], 10)
    # Another port, so that only discovery can find it.
    bob.start("node.port=47013")
    mesh.meet([ada, bob], 30)


PROBE = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
question = bytes(4) + b"\\x00\\x01" + bytes(6) + b"\\x0c_p2pcompute\\x04_udp\\x05local\\x00\\x00\\x0c\\x80\\x01"
heard = []
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.settimeout(1.5)
    asking.sendto(question, (host, 5353))
    try:
        heard.append(asking.recv(2000))
    except OSError:
        pass
with socket.socket() as stream:
    stream.settimeout(2)
    try:
        stream.connect((host, port))
        heard.append("connected")
    except OSError:
        pass
print(len(heard), heard)
"""
"""Asks for our service by unicast multicast DNS, and tries to connect."""


def is_silent(netns: str, host: str, port: int) -> bool:
    words = ["ip", "netns", "exec", netns, "python3", "-c", PROBE, host, str(port)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return done.stdout.startswith("0 ")


def test_a_node_in_another_network_can_be_reached_by_address(mesh: Mesh, cables: None) -> None:
    """Discovery off, only the first contact known; the peer that is unplugged is noticed, and found again."""
    ada, bob = (
        mesh.add(
            name, prefix=("ip", "netns", "exec", netns), P2PC_NODE__INTERFACES="lan0", P2PC_NODE__DISCOVER="false",
            P2PC_NODE__SLOTS="2",
        ).start()
        for name, netns in zip(("ada", "bob"), NAMES, strict=True)
    )
    mesh.join(ada, [bob])
    bob.stop()
    bob.start(f"node.peers={LAN[0]}:{ada.get('/v1/status')['node']['port']}")
    mesh.meet([ada, bob])
    running = ada.begin("run", "sleep 0.2; echo {}", ":::", *map(str, range(60)))
    ada.wait_done(10, 20)
    ip("-n", NAMES[1], "link", "set", "lan0", "down")
    until(lambda: ada.job()["state"] == "done", 75, "the tasks that bob had come back")
    ran = running.finish().check()
    assert sorted(map(int, ran.lines)) == list(range(60))
    assert (ada.job()["failed"], ada.job()["retried"]) == (0, 0)
    ip("-n", NAMES[1], "link", "set", "lan0", "up")
    ip("-n", NAMES[1], "route", "add", "default", "dev", "lan0")
    mesh.meet([ada, bob], 60)


