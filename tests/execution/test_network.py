"""Tasks with a network reach public addresses only; in namespaces of the test, one of which plays the world."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from p2pcompute.execution import box_network
from tests.e2e.test_hostile import ORDINARY, as_ordinary_user
from tests.sandboxes import need_sandbox

PUBLIC, LAN, METADATA, OWN = "93.184.215.14", "10.9.9.1", "169.254.169.254", "93.184.215.2"
PUBLIC_6, LAN_6, OWN_6, UNIQUE_6 = "2600:1f18::5", "2606:2800:220:1::1", "2606:2800:220:1::2", "fd00:9::1"
LINK_6 = "fe80::9"
TUN = "/dev/net/tun"
PORT = 8001

TASK = """
import asyncio, os, sys
from dataclasses import replace
from pathlib import Path
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload
from tests.execution.conftest import Rig

LOOK = '''
import socket

def reached(host, kind, *, device="", scope=0, wait_s=0.4):
    # whether somebody answers; with a device: whatever the routes say
    family, place = (socket.AF_INET6, (host, PORT, 0, scope)) if ":" in host else (socket.AF_INET, (host, PORT))
    with socket.socket(family, kind) as tried:
        tried.settimeout(wait_s)
        try:
            if device:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            tried.connect(place)
            tried.send(b"?")
            return tried.recv(5) == b"hello"
        except OSError:
            return False

TCP, UDP, PORT = socket.SOCK_STREAM, socket.SOCK_DGRAM, %d
try:
    devices = [(socket.if_nametoindex(name), name) for name in ("task0",)]
except OSError:
    devices = []
for host in sys.argv[1:]:
    found = reached(host, TCP, wait_s=6.0 if host in sys.argv[1:3] else 0.4) or reached(host, UDP)
    for number, name in devices:
        found = found or reached(host, TCP, device=name) or reached(host, UDP, device=name)
        found = found or (host.startswith("fe80") and reached(host, TCP, scope=number))
    print(host, "hello" if found else "no", flush=True)
''' % int(sys.argv[2])

async def main():
    rig = Rig(Path(sys.argv[1]))
    rig.runner.rules.allows_network = sys.argv[3] == "full"
    await rig.runner.start()
    try:
        payload = TaskPayload(argv=("python3", "-c", "import sys" + LOOK, *sys.argv[4:]))
        for is_wanted in (True, False):
            spec = JobSpec(kind=TaskKind.COMMAND, network=is_wanted)
            runs = [replace(run, submitter=b"a" * 32) for run in rig.batch(spec, [payload])]
            (outcome,) = await rig.finish(runs, rig.begin(runs))
            print(outcome.status, outcome.stdout.decode().split(chr(10))[:-1], repr(outcome.error), outcome.stderr)
    finally:
        await rig.runner.close()
        rig.blobs.shut()

asyncio.run(main())
"""
SERVE = """
import socket, sys, threading

def answer():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as heard:
        heard.bind(("::", int(sys.argv[1])))
        while True:
            heard.sendto(b"hello", heard.recvfrom(100)[1])

threading.Thread(target=answer, daemon=True).start()
served = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    with served.accept()[0] as taken:
        taken.sendall(b"hello")
"""


def ip(*words: str, space: str = "") -> None:
    prefix = ["ip", "netns", "exec", space] if space else []
    subprocess.run([*prefix, "ip", *words], check=True, capture_output=True, timeout=10)


@pytest.fixture
def spaces() -> Iterator[tuple[str, str]]:
    """A machine, and the world behind its router."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2, to make network namespaces")
    if shutil.which("pasta") is None or not Path(TUN).exists():
        pytest.skip(f"runs where pasta and {TUN} are: apt-get install passt; modprobe tun")
    need_sandbox()
    here, world = f"p2pc-h{os.getpid()}", f"p2pc-w{os.getpid()}"
    servers: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as undo:
        for space in (here, world):
            ip("netns", "add", space)
            undo.callback(ip, "netns", "del", space)
            ip("link", "set", "lo", "up", space=space)
        ip("link", "add", "p2pcnet0", "netns", here, "type", "veth", "peer", "name", "p2pcnet1", "netns", world)
        for space, link, addresses in (
            (here, "p2pcnet0", (OWN, "10.9.9.9", OWN_6, "fd00:9::9")),
            (world, "p2pcnet1", (PUBLIC, LAN, METADATA, PUBLIC_6, LAN_6, UNIQUE_6, LINK_6)),
        ):
            for address in addresses:
                size = ("/64", "nodad") if ":" in address else ("/24",)
                ip("addr", "add", f"{address}{size[0]}", "dev", link, *size[1:], space=space)
            ip("link", "set", link, "up", space=space)
        ip("route", "add", "default", "via", PUBLIC, space=here)
        ip("-6", "route", "add", "default", "via", LAN_6, "dev", "p2pcnet0", space=here)
        ip("route", "add", f"{METADATA}/32", "dev", "p2pcnet0", space=here)
        for space in (here, world):
            server = subprocess.Popen(
                ["ip", "netns", "exec", space, sys.executable, "-c", SERVE, str(PORT)], stdout=subprocess.PIPE
            )
            undo.callback(_end, server)
            servers.append(server)
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        yield here, world


def _end(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()
    assert server.stdout is not None
    server.stdout.close()


def _tun(directory: Path) -> str:
    """Make the device that pasta needs, for everybody, as it is on most machines."""
    path = directory / "tun"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(10, 200))
    path.chmod(0o666)
    return str(path)


def run(space: str, directory: Path, allowed: str, *hosts: str, prefix: Sequence[str] = ()) -> list[str]:
    root = Path(__file__).parents[2]
    words = [*prefix, sys.executable, "-c", TASK, str(directory / "rig"), str(PORT), allowed, *hosts]
    ran = subprocess.run(
        ["ip", "netns", "exec", space, "sh", "-c", f'mount --bind "$0" {TUN} && exec "$@"', _tun(directory), *words],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.parametrize("who", ["root", "user"])
def test_a_task_reaches_public_addresses_and_nothing_else(spaces: tuple[str, str], who: str) -> None:
    """Not the local network, not a cloud's metadata, not this machine by any of its addresses; not by TCP, UDP, mapped
    addresses, or a socket that names its interface; and only when asked."""
    mapped = (f"::ffff:{LAN}", f"::ffff:{METADATA}")
    own = (OWN, "10.9.9.9", OWN_6, "fd00:9::9", "127.0.0.1", "::1", *box_network.GATEWAYS, *box_network.ADDRESSES)
    hosts = (PUBLIC, PUBLIC_6, LAN, METADATA, LAN_6, UNIQUE_6, LINK_6, *mapped, *own)
    direct = subprocess.run(
        [
            "ip",
            "netns",
            "exec",
            spaces[0],
            "python3",
            "-c",
            f"import socket; socket.create_connection(('{LAN}', {PORT}))",
        ],
        check=False,
        timeout=10,
    )
    assert direct.returncode == 0, "the machine itself reaches its local network"
    with tempfile.TemporaryDirectory(prefix="p2pc-net-", dir="/var/tmp") as directory:
        if who == "user":
            os.chown(directory, ORDINARY, ORDINARY)
            Path(directory).chmod(0o711)
        prefix = as_ordinary_user() if who == "user" else ()
        wanted, unwanted = run(spaces[0], Path(directory), "full", *hosts, prefix=prefix)
    reached = [f"{host} {'hello' if host in (PUBLIC, PUBLIC_6) else 'no'}" for host in hosts]
    assert wanted.startswith(f"ok {reached}"), wanted
    assert unwanted.startswith("ok " + str([f"{host} no" for host in hosts])), unwanted
    left = subprocess.run(["pgrep", "-f", "pasta -f -q"], capture_output=True, text=True, check=False).stdout
    assert not left, "what carries packets ends with its sandbox"


def test_the_machine_owner_decides(spaces: tuple[str, str], tmp_path: Path) -> None:
    wanted, _ = run(spaces[0], tmp_path, "none", PUBLIC)
    assert wanted.startswith("refused [] 'this node cannot give the task a network: its owner"), wanted


def test_what_is_public() -> None:
    import ipaddress

    networks = [ipaddress.ip_network(text) for text in box_network.FORBIDDEN]
    for number in range(0, 1 << 32, 999_983):
        address = ipaddress.IPv4Address(number)
        if not address.is_global and address not in ipaddress.ip_network("127.0.0.0/8"):
            assert any(address in network for network in networks), address
    rng = random.Random(6)
    starts = [rng.getrandbits(16) << 112 for _ in range(3000)]
    special = ["::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2001::1", "2002:a00:1::", "fc00::1", "fe80::1", "ff02::1"]
    addresses = [ipaddress.IPv6Address(start | rng.getrandbits(112)) for start in starts]
    for sixth in [*addresses, *map(ipaddress.IPv6Address, special)]:
        is_forbidden = any(sixth in network for network in networks)
        assert is_forbidden or (sixth.is_global and sixth in ipaddress.ip_network("2000::/3")), sixth
    assert not any(ipaddress.ip_address(PUBLIC_6) in network for network in networks)


def test_own_addresses_are_found() -> None:
    assert "127.0.0.1/32" in box_network.own_addresses()
