"""A node on each of two machines: what it opens, how it is found, and that it keeps to its interface."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.mesh import Mesh
from tests.e2e.namespaces import LAN, OTHER, two_machines, why_not


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    if reason := why_not():
        pytest.skip(reason)
    with two_machines("p2pc-e2e") as names:
        yield names


def test_two_machines(mesh: Mesh, machines: tuple[str, str]) -> None:
    """Found by LAN discovery after a restart too; on the allowed interface and on no other."""
    ada, bob = (
        mesh.add(name, prefix=("ip", "netns", "exec", netns), P2PC_NODE__INTERFACES="lan0", P2PC_NODE__SLOTS="2")
        for name, netns in zip(("ada", "bob"), machines, strict=True)
    )
    for daemon in (ada, bob):
        daemon.start()
        assert {host for host, _port in daemon.sockets()} <= {"127.0.0.1", "::1"}, "alone: loopback only"
    token = ada.p2pc("invite", "--mine", "--token").check().out.strip()
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
    assert is_silent(machines[1], OTHER[0], ports[0]), "nothing answers on the other cable"
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
