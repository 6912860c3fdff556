#!/usr/bin/env python3
"""Our DHT beside the `kademlia` package's `Server`: 100 nodes each over UDP on loopback, healthy and with dead ones.

    python benchmarks/dht.py                      # prints JSON
    python benchmarks/dht.py --nodes 50 --gets 50

One process and one event loop for both, one after the other; real sockets, and with ours real signatures.  Values are
put by nodes drawn at random and got by others: healthy one at a time, and with a part of the nodes dead (their sockets
closed in the same instant, nobody is told) a few at a time, because timeouts are most of that.  Seeds are the same for
both.  A message is a request datagram that the asking node sent, those that it sent again included.  Latencies are
those of one busy process in which 100 nodes share a core: compare them with one another, not with those of machines of
their own, and not when other programs are at work.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import logging
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast

from kademlia.network import Server

from p2pcompute.dht.records import make_ad
from p2pcompute.dht.service import Dht
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.limits import RECORD_VALUE_BYTES_MAX
from p2pcompute.transport.datagrams import Datagrams

VALUES = 30
AT_ONCE_DEAD = 8
GROUP = b"b" * 32
SETTLE_S = 15.0
"""After the last has joined: ours looks around again up to 10 s later."""


class Node(Protocol):
    """One node of either kind."""

    async def put(self, name: str, value: bytes) -> None: ...

    async def get(self, name: str) -> bytes | None: ...

    def messages(self) -> int:
        """Request datagrams sent so far."""

    def die(self) -> None:
        """Say and hear nothing any more."""


class Ours:
    """A node with nothing but our DHT and its datagrams."""

    def __init__(self, number: int) -> None:
        absent = cast(Any, None)
        crypto = RealCrypto()
        host = Host(
            clock=RealClock(), rng=SystemRng(), crypto=crypto, net=RealNet(interfaces=["lo"]), store=absent,
            runner=absent, probe=absent,
        )  # fmt: skip
        self._scope = TaskScope(f"node-{number}")
        self._identity = Identity(crypto, hashlib.sha256(b"%d" % number).digest())
        self._datagrams = Datagrams(host, self._scope)
        port = self._datagrams.bind_group(GROUP, self._receive)
        self._dht = Dht(host, self._identity, port, self._scope, group_id=GROUP, name=f"node-{number}")

    def _receive(self, body: bytes, source: Address) -> None:
        self._dht.receive(body, source)

    async def start(self, first: Address | None) -> Address:
        address = Address("127.0.0.1", await self._datagrams.start(0, loopback_only=True))
        await self._dht.start([], [first] if first else [])
        return address

    async def put(self, name: str, value: bytes) -> None:
        sign, key = self._identity.sign_envelope, self._identity.public_key
        await self._dht.put(make_ad(sign, key, key=_key(name), seq=1, wall=time.time(), ttl_s=3600, value=value))

    async def get(self, name: str) -> bytes | None:
        found = await self._dht.get(_key(name))
        return found[0].value if found else None

    def messages(self) -> int:
        return self._dht.counters.requests_sent + self._dht.counters.requests_resent

    def die(self) -> None:
        self._datagrams.stop()

    async def close(self) -> None:
        await self._scope.close()
        self._datagrams.stop()


class Theirs:
    """A `Server` of the kademlia package as it comes."""

    def __init__(self) -> None:
        self._server = Server()
        self._sent = 0

    async def start(self, first: Address | None) -> Address:
        await self._server.listen(0, interface="127.0.0.1")
        transport = self._server.transport
        send = transport.sendto

        def count(data: bytes, address: Any = None) -> None:
            self._sent += data[:1] == b"\x00"  # rpcudp: 0 is a request, 1 a response
            send(data, address)

        self._server.protocol.transport = _Sending(transport, count)
        address = Address("127.0.0.1", transport.get_extra_info("sockname")[1])
        if first is not None:
            await self._server.bootstrap([(first.host, first.port)])
        return address

    async def put(self, name: str, value: bytes) -> None:
        await self._server.set(name, value)

    async def get(self, name: str) -> bytes | None:
        found = await self._server.get(name)
        return found if isinstance(found, bytes) else None

    def messages(self) -> int:
        return self._sent

    def die(self) -> None:
        self._server.stop()

    async def close(self) -> None:
        self._server.stop()


class _Sending:
    """A transport whose `sendto` is another."""

    def __init__(self, transport: Any, send: Callable[..., None]) -> None:
        self._transport = transport
        self.sendto = send

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _key(name: str) -> bytes:
    return hashlib.sha1(name.encode(), usedforsecurity=False).digest()


# --- what is measured ---------------------------------------------------------------------------------


async def measure(kind: str, *, nodes: int, gets: int, dead: float, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    made: list[Any] = [Ours(number) if kind == "p2pcompute" else Theirs() for number in range(nodes)]
    try:
        first: Address | None = None
        for node in made:
            address = await node.start(first)
            first = first or address
        await asyncio.sleep(SETTLE_S)
        values = {f"name-{number}": rng.randbytes(min(100, RECORD_VALUE_BYTES_MAX)) for number in range(VALUES)}
        for name, value in values.items():
            await rng.choice(made).put(name, value)
        healthy = await _gets(made, values, rng, gets=gets, at_once=1)
        gone = rng.sample(made[1:], round(dead * nodes))
        for node in gone:
            node.die()
        left = [node for node in made if node not in gone]
        hurt = await _gets(left, values, rng, gets=gets, at_once=AT_ONCE_DEAD)
        return {"healthy": healthy, "dead": hurt}
    finally:
        for node in made:
            await node.close()


async def _gets(
    nodes: list[Any], values: dict[str, bytes], rng: random.Random, *, gets: int, at_once: int
) -> dict[str, float]:
    asked = [(rng.choice(nodes), rng.choice(sorted(values))) for _ in range(gets)]
    found: list[bool] = []
    latencies_ms: list[float] = []
    messages: list[int] = []
    began_cpu = time.process_time()

    async def one(node: Node, name: str) -> None:
        began, sent = time.perf_counter(), node.messages()
        found.append(await node.get(name) == values[name])
        latencies_ms.append((time.perf_counter() - began) * 1000)
        messages.append(node.messages() - sent)

    waiting = list(reversed(asked))

    async def work() -> None:
        while waiting:
            await one(*waiting.pop())

    workers: list[Awaitable[None]] = [work() for _ in range(at_once)]
    await asyncio.gather(*workers)
    latencies_ms.sort()
    return {
        "success": sum(found) / gets,
        "latency_ms_p50": round(statistics.median(latencies_ms), 2),
        "latency_ms_p95": round(latencies_ms[int(0.95 * gets)], 2),
        "messages": round(statistics.mean(messages), 2),
        "cpu_ms": round((time.process_time() - began_cpu) * 1000 / gets, 2),
    }


def commit() -> str | None:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        here = Path(__file__).parent
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--gets", type=int, default=100, help="of each kind, healthy and with dead nodes")
    parser.add_argument("--dead", type=float, default=0.1, help="share of the nodes that die")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="where the JSON goes; default: standard output")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the package logs each timeout
    results = {}
    for kind in ("p2pcompute", "kademlia"):
        print(f"{kind} …", file=sys.stderr, flush=True)
        results[kind] = asyncio.run(measure(kind, nodes=given.nodes, gets=given.gets, dead=given.dead, seed=given.seed))
    document = {
        "schema": "p2pc.benchmark.dht/1",
        "commit": commit(),
        "machine": {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
        "versions": {"kademlia": version("kademlia")},
        "nodes": given.nodes,
        "gets": given.gets,
        "dead": given.dead,
        "seed": given.seed,
        "results": results,
    }
    text = json.dumps(document, indent=2) + "\n"
    if given.output is not None:
        given.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
