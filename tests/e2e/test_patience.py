"""What takes its time: leases that run out, peers that are forgotten.  All of it waits at the same moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from p2pcompute.limits import CHANNEL_DEAD_S, LEASE_S_MIN, PEER_LOST_GRACE_S
from tests.e2e.mesh import Mesh, until
from tests.e2e.namespaces import LAN, plug, two_machines, unplug, why_not

FORGOTTEN_S = 60.0
SLACK_S = 25.0
"""For the tasks themselves, and for a busy machine."""


def a_stopped_worker(mesh: Mesh) -> float:
    """SIGSTOP for good: its tasks come back by themselves, without a restart of anything; seconds that it took."""
    ada, bob = mesh.start("ada", "bob")
    running = ada.begin("run", "sleep 0.1; echo {}", ":::", *map(str, range(120)))
    until(lambda: any(share["node"] == "bob" and share["done"] for share in _shares(mesh)), 30, "bob works")
    bob.suspend()
    began = time.monotonic()
    ran = running.finish(LEASE_S_MIN + CHANNEL_DEAD_S + PEER_LOST_GRACE_S + SLACK_S).check()
    took_s = time.monotonic() - began
    assert sorted(map(int, ran.lines)) == list(range(120))
    job = ada.job()
    assert (job["done"], job["failed"], job["retried"]) == (120, 0, 0), job
    assert ada.ups() == [] or took_s < CHANNEL_DEAD_S
    return took_s


def _shares(mesh: Mesh) -> list[dict[str, object]]:
    jobs = mesh.daemons[0].get("/v1/jobs?all=1")["items"]
    return list(jobs[0]["by_node"]) if jobs else []


def a_gone_peer(mesh: Mesh) -> float:
    """kill -9: nobody says goodbye, and within a minute nobody counts on it any more; seconds that it took."""
    ada, bob, eve = mesh.start("ada", "bob", "eve")
    bob.kill()
    began = time.monotonic()
    until(lambda: ada.ups() == ["eve"] and eve.ups() == ["ada"], FORGOTTEN_S, "bob is gone")
    assert ada.peers()["bob"] != "up", "it is known for a while yet"
    took_s = time.monotonic() - began
    assert bob.start() and until(lambda: ada.ups() == ["bob", "eve"], 20, "and is found again")
    return took_s


def a_stopped_owner(mesh: Mesh) -> float:
    """An owner that stops for good does not hold its workers: they work for others, and keep what they owe it."""
    ada, bob = mesh.start("ada", "bob")
    ada.p2pc("run", "--detach", "sleep 0.2; echo {}", ":::", *map(str, range(60))).check()
    ada.wait_done(8, 30)
    ada.suspend()
    began = time.monotonic()
    ran = bob.p2pc("run", "echo {}", ":::", *map(str, range(8)), limit_s=60).check()
    took_s = time.monotonic() - began
    assert len(ran.lines) == 8
    until(lambda: bob.ups() == [], FORGOTTEN_S, "bob notices that ada is silent")
    ada.resume()
    job = ada.wait_over(60)
    assert (job["done"], job["failed"], job["retried"]) == (60, 0, 0), job
    return took_s


def an_unplugged_worker(mesh: Mesh) -> float:
    """The cable is pulled while bob works, LAN discovery off: its tasks come back, and so does bob."""
    with two_machines("p2pc-cut") as machines:
        ada, bob = (
            mesh.add(
                name,
                prefix=("ip", "netns", "exec", machine),
                P2PC_NODE__INTERFACES="lan0",
                P2PC_NODE__DISCOVER="false",
                P2PC_NODE__SLOTS="2",
            ).start()
            for name, machine in zip(("ada", "bob"), machines, strict=True)
        )
        mesh.join(ada, [bob])
        bob.stop()
        bob.start(f"node.peers={LAN[0]}:{ada.get('/v1/status')['node']['port']}")
        mesh.meet([ada, bob])
        running = ada.begin("run", "sleep 0.2; echo {}", ":::", *map(str, range(60)))
        until(lambda: any(share["node"] == "bob" and share["done"] for share in _shares(mesh)), 30, "bob works")
        unplug(machines[1], "lan0")
        began = time.monotonic()
        ran = running.finish(LEASE_S_MIN + CHANNEL_DEAD_S + PEER_LOST_GRACE_S + SLACK_S).check()
        took_s = time.monotonic() - began
        assert sorted(map(int, ran.lines)) == list(range(60))
        assert (ada.job()["failed"], ada.job()["retried"]) == (0, 0)
        plug(machines[1], "lan0")
        mesh.meet([ada, bob], FORGOTTEN_S)
        mesh.close()  # while there is a network
    return took_s


def test_in_time(short_path: Path) -> None:
    """All scenarios at the same moment, because most of each is waiting."""
    problems: list[Exception] = []
    with ThreadPoolExecutor() as pool:
        scenarios = [a_stopped_worker, a_gone_peer, a_stopped_owner]
        if not why_not():
            scenarios.append(an_unplugged_worker)
        under_way = [(scenario, pool.submit(watch, scenario, short_path)) for scenario in scenarios]
        for scenario, result in under_way:
            try:
                print(f"{scenario.__name__}: {result.result():.1f} s")
            except Exception as error:
                error.add_note(f"in {scenario.__name__}")
                problems.append(error)
    if problems:
        raise ExceptionGroup("not all went well", problems)


def watch(scenario: Callable[[Mesh], float], directory: Path) -> float:
    mesh = Mesh(directory / scenario.__name__)
    try:
        took_s = scenario(mesh)
    except BaseException:
        mesh.close(is_failing=True)
        raise
    mesh.close()
    return took_s
