"""Tasks with a network reach public addresses only; in namespaces of the test, one of which plays the world."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from p2pcompute.execution import box_network, sandbox
from tests.e2e.test_hostile import ORDINARY, as_ordinary_user
from tests.sandboxes import need_sandbox

PUBLIC, LAN, METADATA, OWN = "93.184.215.14", "10.9.9.1", "169.254.169.254", "93.184.215.2"
PORT = 8001

TASK = """
import asyncio, os, sys
from dataclasses import replace
from pathlib import Path
from p2pcompute.execution.spec import JobSpec, TaskKind, TaskPayload
from tests.execution.conftest import Rig

LOOK = '''
import socket
for host in sys.argv[1:]:
    with socket.socket() as tried:
        tried.settimeout(3)
        try:
            tried.connect((host, %d))
            print(host, tried.recv(5).decode())
        except OSError as error:
            print(host, "no")
''' % int(sys.argv[2])

async def main():
    rig = Rig(Path(sys.argv[1]))
    rig.runner.allows_network = sys.argv[3] == "full"
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
import socket, sys
served = socket.create_server(("0.0.0.0", int(sys.argv[1])))
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
    try:
        sandbox.find_pasta()
    except sandbox.NoSandbox as error:
        pytest.skip(f"runs where tasks can have a network: {error}; {error.fix or 'apt-get install passt'}")
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
            (here, "p2pcnet0", (OWN, "10.9.9.9")),
            (world, "p2pcnet1", (PUBLIC, LAN, METADATA)),
        ):
            for address in addresses:
                ip("addr", "add", f"{address}/24", "dev", link, space=space)
            ip("link", "set", link, "up", space=space)
        ip("route", "add", "default", "via", PUBLIC, space=here)
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


def run(space: str, directory: Path, allowed: str, *hosts: str, prefix: Sequence[str] = ()) -> list[str]:
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        ["ip", "netns", "exec", space, *prefix, sys.executable, "-c", TASK, directory, str(PORT), allowed, *hosts],
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
    """Not the local network, not a cloud's metadata, not this machine by any of its addresses; and only when asked."""
    hosts = (PUBLIC, LAN, METADATA, OWN, "10.9.9.9", "127.0.0.1", box_network.GATEWAY)
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
        prefix = as_ordinary_user() if who == "user" else ()
        wanted, unwanted = run(spaces[0], Path(directory), "full", *hosts, prefix=prefix)
    assert wanted.startswith("ok " + str([f"{PUBLIC} hello", *(f"{host} no" for host in hosts[1:])])), wanted
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
            is_tiny = address in ipaddress.ip_network("192.0.0.0/24") or address in ipaddress.ip_network("192.0.2.0/24")
            assert is_tiny or any(address in network for network in networks), address


def test_own_addresses_are_found() -> None:
    assert "127.0.0.1/32" in box_network.own_addresses()
