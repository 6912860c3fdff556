#!/usr/bin/env python3
"""Our DHT beside the `kademlia` package's `Server`: 100 nodes each over UDP on loopback, healthy and with dead ones.

    python benchmarks/dht.py                        # prints JSON; about two minutes
    python benchmarks/dht.py --nodes 30 --asks 10   # quicker, coarser

Each kind has its nodes in two processes, half in each; node n of both kinds has the same id, and both are asked the
same by the same nodes: lookups (the 20 nodes nearest to a random key, as both do for a put) and gets of values that
were put before.  Nodes join one after the other, each when the one before it has looked around.

Healthy: one ask at a time, the kinds in turn, in rounds, so that whatever else the machine does hits both alike; who
waits for his turn costs the other nothing but his upkeep.  Then the sockets of a part of the nodes are closed in the
same instant, nobody is told, and asks begin at the same moments in both kinds at once: latency is then waiting for
timeouts.

Found is a lookup whose first result is the nearest live node (`recall`: of the 20 nearest live ones, those found), and
a get that returns the value.  A message is a request datagram that the asking node sent, those that it sent again
included.  `cpu_ms` is processor time of all nodes of the kind together, for one healthy ask, half of which are lookups.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from dht_node import RealDht, identity_of, machine, nearest
from kademlia.crawling import NodeSpiderCrawl
from kademlia.network import Server
from kademlia.node import Node as TheirNode
from report import commit, write

from p2pcompute.dht.contacts import id_of
from p2pcompute.host.interfaces import Address

KINDS: Final = ("p2pcompute", "kademlia")
PROCESSES: Final = 2
K: Final = 20
VALUES: Final = 30
VALUE_BYTES: Final = 100
SETTLE_S: Final = 15.0
"""After the last has joined: ours looks around again up to 10 s later."""
WARM_ASKS: Final = 10
ROUNDS: Final = 5
ASKS_PER_S: Final = 5.0
"""Among dead nodes, of each kind: few enough that the processes wait most of the time."""
REPLY_S_MAX: Final = 300.0
REPLY_BYTES_MAX: Final = 1 << 24


class Theirs:
    """A `Server` of the kademlia package as it comes, with an id of ours."""

    def __init__(self, number: int) -> None:
        self.id = _id_of(number)
        self._server = Server(node_id=self.id)
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

    async def find(self, key: bytes) -> list[bytes]:
        """As `Server.set` finds whom to give a value."""
        server, wanted = self._server, TheirNode(key)
        seeds = server.protocol.router.find_neighbors(wanted)
        found = await NodeSpiderCrawl(server.protocol, wanted, seeds, server.ksize, server.alpha).find()
        return [node.id for node in found]

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


def _id_of(number: int) -> bytes:
    return id_of(identity_of(number).public_key)


# --- a process with some nodes of one kind ------------------------------------------------------------


class _Part:
    """The nodes of this process; does what each line on standard input says, and answers with a line."""

    def __init__(self, kind: str) -> None:
        self._make: Callable[[int], Any] = RealDht if kind == "p2pcompute" else Theirs
        self._nodes: dict[int, Any] = {}

    async def run(self) -> None:
        reader = asyncio.StreamReader(limit=REPLY_BYTES_MAX)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            do, *rest = json.loads(line)
            print(json.dumps(await getattr(self, do)(*rest)), flush=True)
        for node in self._nodes.values():
            await node.close()

    async def start(self, number: int, first: list[Any] | None) -> list[Any]:
        node = self._nodes[number] = self._make(number)
        return list(await node.start(Address(*first) if first else None))

    async def put(self, number: int, name: str, value: str) -> None:
        await self._nodes[number].put(name, bytes.fromhex(value))

    async def die(self, numbers: list[int]) -> None:
        for number in numbers:
            if number in self._nodes:
                self._nodes.pop(number).die()

    async def cpu_s(self) -> float:
        return time.process_time()

    async def counters(self, number: int) -> dict[str, int]:
        return dict(self._nodes[number].counters())

    async def ask(self, asks: list[list[Any]]) -> list[list[Any]]:
        """Make asks ``[node, what, of what, after so many seconds]``; None seconds: when the one before has ended.

        Returns:
            For each: what was found, latency in ms, messages.
        """
        if asks and asks[0][3] is None:
            return [await self._one(*ask) for ask in asks]
        return list(await asyncio.gather(*(self._one(*ask) for ask in asks)))

    async def _one(self, number: int, what: str, of: str, after_s: float | None) -> list[Any]:
        await asyncio.sleep(after_s or 0)
        node = self._nodes[number]
        began, sent = time.perf_counter(), node.messages()
        if what == "get":
            value = await node.get(of)
            found = value.hex() if value is not None else None
        else:
            found = [one.hex() for one in await node.find(bytes.fromhex(of))]
        return [found, (time.perf_counter() - began) * 1000, node.messages() - sent]


# --- the other side of it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """Something that a node is asked; the same for both kinds."""

    node: int
    what: str
    """"find" or "get"."""
    of: str
    """Key in hex, or name."""


class Kind:
    """All nodes of one kind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._parts: list[asyncio.subprocess.Process] = []
        self._turns = [asyncio.Lock() for _ in range(PROCESSES)]

    async def begin(self) -> None:
        for _ in range(PROCESSES):
            part = await asyncio.create_subprocess_exec(
                sys.executable, __file__, "--part", self.name,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=REPLY_BYTES_MAX,
            )  # fmt: skip
            self._parts.append(part)

    async def end(self) -> None:
        for part in self._parts:
            assert part.stdin is not None
            part.stdin.close()
        for part in self._parts:
            try:
                await asyncio.wait_for(part.wait(), 10)
            except TimeoutError:
                part.kill()
                await part.wait()

    async def tell(self, where: int, *said: Any) -> Any:
        """Have the process of node `where` do something."""
        part = self._parts[where % PROCESSES]
        assert part.stdin is not None and part.stdout is not None
        async with self._turns[where % PROCESSES]:
            part.stdin.write(json.dumps(said).encode() + b"\n")
            line = await asyncio.wait_for(part.stdout.readline(), REPLY_S_MAX)
        if not line:
            raise RuntimeError(f"a process of {self.name} ended")
        return json.loads(line)

    def pid(self, where: int) -> int:
        return self._parts[where % PROCESSES].pid

    async def build(
        self, nodes: Sequence[int], values: dict[str, bytes], publishers: Sequence[int]
    ) -> dict[int, list[Any]]:
        """Start nodes, let them settle, put values; return the address of each node."""
        addresses: dict[int, list[Any]] = {}
        for number in nodes:
            addresses[number] = await self.tell(number, "start", number, addresses.get(nodes[0]))
        await asyncio.sleep(SETTLE_S)
        for publisher, (name, value) in zip(publishers, values.items(), strict=True):
            await self.tell(publisher, "put", publisher, name, value.hex())
        return addresses

    async def cpu_s(self) -> float:
        return sum([await self.tell(part, "cpu_s") for part in range(PROCESSES)])

    async def ask_in_turn(self, asks: list[Ask]) -> list[list[Any]]:
        """Make asks one after the other."""
        made = []
        for ask in asks:
            made += await self.tell(ask.node, "ask", [[ask.node, ask.what, ask.of, None]])
        return made

    async def ask_at_once(self, asks: list[Ask]) -> list[list[Any]]:
        """Make asks at fixed moments."""
        parts: list[list[tuple[int, Ask]]] = [[] for _ in range(PROCESSES)]
        for number, ask in enumerate(asks):
            parts[ask.node % PROCESSES].append((number, ask))
        told = [
            self.tell(part, "ask", [[ask.node, ask.what, ask.of, number / ASKS_PER_S] for number, ask in of_part])
            for part, of_part in enumerate(parts)
        ]
        made = await asyncio.gather(*told)
        by_number = {number: one for of_part, got in zip(parts, made, strict=True)
                     for (number, _), one in zip(of_part, got, strict=True)}  # fmt: skip
        return [by_number[number] for number in range(len(asks))]


async def measure(*, nodes: int, asks: int, dead: float, seed: int) -> dict[str, Any]:
    """Both kinds, healthy and with dead nodes."""
    rng = random.Random(seed)
    values = {f"name-{number}": rng.randbytes(VALUE_BYTES) for number in range(VALUES)}
    publishers = [rng.randrange(nodes) for _ in values]
    kinds = [Kind(name) for name in KINDS]
    everybody = list(range(nodes))
    drawn = _Draw(rng, list(values))
    for kind in kinds:
        await kind.begin()
    try:
        _say("joining")
        for kind in kinds:
            await kind.build(everybody, values, publishers)
        warm = drawn.asks(everybody, WARM_ASKS)
        for kind in kinds:
            await kind.ask_in_turn(warm)
        healthy: dict[str, list[Any]] = {name: [] for name in KINDS}
        cpu_s = dict.fromkeys(KINDS, 0.0)
        asked: list[Ask] = []
        for number in range(ROUNDS):
            _say(f"healthy, round {number + 1} of {ROUNDS}")
            of_round = drawn.asks(everybody, math.ceil(asks / ROUNDS))
            asked += of_round
            for kind in kinds if number % 2 else reversed(kinds):
                before = await kind.cpu_s()
                healthy[kind.name] += await kind.ask_in_turn(of_round)
                cpu_s[kind.name] += await kind.cpu_s() - before
        _say("with dead nodes")
        gone = rng.sample(everybody[1:], round(dead * nodes))
        left = [number for number in everybody if number not in gone]
        asked_last = drawn.asks(left, asks)
        for kind in kinds:
            for part in range(PROCESSES):
                await kind.tell(part, "die", gone)
        hurt = await asyncio.gather(*(kind.ask_at_once(asked_last) for kind in kinds))
    finally:
        for kind in kinds:
            await kind.end()
    results = {}
    for kind, last in zip(kinds, hurt, strict=True):
        ours = {
            "healthy": _figures(asked, healthy[kind.name], everybody, values),
            "dead": _figures(asked_last, last, left, values),
        }
        ours["healthy"]["cpu_ms"] = round(1000 * cpu_s[kind.name] / len(asked), 2)
        results[kind.name] = ours
    return results


class _Draw:
    """What is asked, drawn at random."""

    def __init__(self, rng: random.Random, names: list[str]) -> None:
        self._rng = rng
        self._names = names

    def asks(self, nodes: list[int], count: int) -> list[Ask]:
        """So many lookups and as many gets, mixed, each from another node as far as there are so many."""
        rng = self._rng
        kinds = ["find", "get"] * count
        rng.shuffle(kinds)
        askers = [number for _ in range(math.ceil(2 * count / len(nodes))) for number in rng.sample(nodes, len(nodes))]
        return [
            Ask(asker, what, rng.choice(self._names) if what == "get" else rng.randbytes(K).hex())
            for asker, what in zip(askers, kinds, strict=False)
        ]


def _figures(asked: list[Ask], made: list[Any], live: list[int], values: dict[str, bytes]) -> dict[str, Any]:
    ids = {number: _id_of(number) for number in live}
    figures: dict[str, Any] = {}
    for what in ("find", "get"):
        chosen = [(ask, one) for ask, one in zip(asked, made, strict=True) if ask.what == what]
        latencies_ms = sorted(one[1] for _, one in chosen)
        found, recall = [], []
        for ask, (got, _, _) in chosen:
            if what == "get":
                found.append(got == values[ask.of].hex())
                continue
            others = [one for number, one in ids.items() if number != ask.node]
            wanted = [one.hex() for one in nearest(others, bytes.fromhex(ask.of), K)]
            got = [one for one in got if one != ids[ask.node].hex()]
            found.append(got[:1] == wanted[:1])
            recall.append(sum(one in got for one in wanted) / len(wanted))
        figures[what] = {
            "count": len(chosen),
            "success": round(statistics.mean(found), 4),
            "latency_ms_p50": round(statistics.median(latencies_ms), 2),
            "latency_ms_p95": round(latencies_ms[int(0.95 * len(chosen))], 2),
            "messages": round(statistics.mean(one[2] for _, one in chosen), 2),
        }
        if recall:
            figures[what]["recall"] = round(statistics.mean(recall), 4)
    return figures


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _ratios(results: dict[str, Any]) -> dict[str, float]:
    """Latency of theirs over ours: above 1, ours is faster."""
    ours, theirs = results["p2pcompute"], results["kademlia"]
    return {
        f"{state}_{what}_{part}": round(
            theirs[state][what][f"latency_ms_{part}"] / ours[state][what][f"latency_ms_{part}"], 2
        )
        for state in ("healthy", "dead")
        for what in ("find", "get")
        for part in ("p50", "p95")
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--asks", type=int, default=100, help="lookups, and as many gets, healthy and with dead nodes")
    parser.add_argument("--dead", type=float, default=0.1, help="share of the nodes that die")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="where the JSON goes; default: standard output")
    parser.add_argument("--part", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        logging.disable(logging.CRITICAL)  # the package logs each timeout
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_Part(given.part).run())
        return 0
    where = machine()
    results = asyncio.run(measure(nodes=given.nodes, asks=given.asks, dead=given.dead, seed=given.seed))
    document = {
        "schema": "p2pc.benchmark.dht/2",
        "commit": commit(),
        "machine": where,
        "versions": {"kademlia": version("kademlia")},
        "nodes": given.nodes,
        "processes": PROCESSES,
        "dead": given.dead,
        "seed": given.seed,
        "results": results,
        "theirs_over_ours": _ratios(results),
    }
    write(document, given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
