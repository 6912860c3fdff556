#!/usr/bin/env python3
"""One real node under a flood of datagrams, while it and others ask for what they need.  Prints JSON.

    python benchmarks/flood.py                          # 5 minutes
    python benchmarks/flood.py --minutes 0.5 --rate 10000

A group of nodes on loopback; one, in a process of its own, gets `rate` datagrams a second, each from another address
and port of 127.0.0.0/8, by turns: junk; a FIND under the group's MAC with a wrong tag; a FIND whose MAC and
tag are right, from somebody who is not at that address.  So whoever floods is a member, or has the group's key.

Meanwhile the flooded node gets values that others keep and looks up nodes, and others get values of which it is one of
the holders.  Found is a get that returns the value, and a lookup whose first result is the nearest node.  Memory is the
resident set of its process, once a second; `growth_bytes` is how much more its mean was in the last quarter of the
flood than in the second one (in the first, tables fill up to their limits).  Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

from dht import Kind
from dht_node import GROUP, identity_of, key_of, machine, nearest
from report import commit, write

from p2pcompute.dht.contacts import id_of
from p2pcompute.dht.messages import RUN_BYTES, TRANSACTION_BYTES, Find, encode_statement
from p2pcompute.ids import DHT_ID_BYTES
from p2pcompute.limits import DATAGRAM_BYTES_MAX
from p2pcompute.transport.datagrams import seal_datagram

FLOODED: Final = 1
"""Number of the flooded node: odd ones are in one process, even ones in the other."""
VALUES: Final = 20
ASK_EVERY_S: Final = 0.5
IDENTITIES: Final = 500
"""Whose proofs are right."""
TICK_S: Final = 0.01
SHAPES: Final = ("junk", "wrong proof", "spoofed")


def flood(target: tuple[str, int], *, rate: float, seconds: float, seed: int) -> int:
    """Send, and return how many were sent.  Falls behind, rather than send in bursts, where it cannot keep up."""
    rng = random.Random(seed)
    victim = identity_of(FLOODED).public_key
    liars = [identity_of(1_000_000 + number) for number in range(IDENTITIES)]
    began = time.monotonic()
    sent = 0
    while (passed := time.monotonic() - began) < seconds:
        for _ in range(min(int(rate * passed) - sent, int(2 * rate * TICK_S))):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((f"127.{rng.randrange(1, 255)}.{rng.randrange(256)}.{rng.randrange(1, 255)}", 0))
                sock.sendto(_made(SHAPES[sent % len(SHAPES)], rng, rng.choice(liars), victim), target)
            sent += 1
        time.sleep(TICK_S)
    return sent


def _made(shape: str, rng: random.Random, liar: Any, victim: bytes) -> bytes:
    if shape == "junk":
        return rng.randbytes(rng.randrange(1, DATAGRAM_BYTES_MAX + 100))
    body = encode_statement(
        Find(rng.randbytes(DHT_ID_BYTES)),
        transaction=rng.randbytes(TRANSACTION_BYTES),
        sender=liar.public_key,
        recipient=id_of(victim),
        run=rng.randbytes(RUN_BYTES),
        group_id=GROUP,
        prove=lambda said: liar.tag(victim, said if shape == "spoofed" else b""),
    )
    return seal_datagram(GROUP, body)


class Asks:
    """What honest nodes asked, and whether it was found."""

    def __init__(self, group: Kind, numbers: list[int], values: dict[str, bytes], rng: random.Random) -> None:
        self._group = group
        self._numbers = numbers
        self._ids = {number: id_of(identity_of(number).public_key) for number in numbers}
        self._values = values
        self._rng = rng
        self.found: dict[str, list[bool]] = {"get": [], "find": [], "get by others": []}
        self.latencies_ms: dict[str, list[float]] = {what: [] for what in self.found}

    async def make(self) -> None:
        """A get and a lookup of the flooded node, and a get of another one, together."""
        rng = self._rng
        names = list(self._values)
        held = min(names, key=lambda name: self._distance(key_of(name)))  # what the flooded node is nearest to
        other = rng.choice([number for number in self._numbers if number != FLOODED])
        await asyncio.gather(
            self._get("get", FLOODED, rng.choice(names)), self._find(rng.randbytes(20)),
            self._get("get by others", other, held),
        )  # fmt: skip

    def _distance(self, key: bytes) -> int:
        return int.from_bytes(key, "big") ^ int.from_bytes(self._ids[FLOODED], "big")

    async def _get(self, what: str, number: int, name: str) -> None:
        [[value, latency_ms, _]] = await self._group.tell(number, "ask", [[number, "get", name, None]])
        self.found[what].append(value == self._values[name].hex())
        self.latencies_ms[what].append(latency_ms)

    async def _find(self, key: bytes) -> None:
        [[got, latency_ms, _]] = await self._group.tell(FLOODED, "ask", [[FLOODED, "find", key.hex(), None]])
        others = [one for number, one in self._ids.items() if number != FLOODED]
        self.found["find"].append(got[:1] == [nearest(others, key, 1)[0].hex()])
        self.latencies_ms["find"].append(latency_ms)

    def figures(self) -> dict[str, Any]:
        return {
            what: {
                "count": len(found),
                "success": round(statistics.mean(found), 4),
                "latency_ms_p50": round(statistics.median(self.latencies_ms[what]), 2),
                "latency_ms_max": round(max(self.latencies_ms[what]), 2),
            }
            for what, found in self.found.items()
        }


async def measure(*, nodes: int, minutes: float, rate: float, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    numbers = [FLOODED, *range(0, 2 * (nodes - 1), 2)]
    values = {f"name-{number}": rng.randbytes(100) for number in range(VALUES)}
    group = Kind("p2pcompute")
    await group.begin()
    try:
        addresses = await group.build(numbers, values, [rng.choice(numbers[1:]) for _ in values])
        calm, flooded = Asks(group, numbers, values, rng), Asks(group, numbers, values, rng)
        for _ in range(10):
            await calm.make()
        flooder = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--to", ":".join(map(str, addresses[FLOODED])), "--minutes", str(minutes),
            "--rate", str(rate), "--seed", str(seed), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        ended = asyncio.create_task(flooder.communicate())
        rss: list[int] = []
        watch = asyncio.create_task(_watch(group.pid(FLOODED), rss))
        before_s, began = await group.tell(FLOODED, "cpu_s"), time.monotonic()
        while not ended.done():
            await flooded.make()
            await asyncio.sleep(ASK_EVERY_S)
        watch.cancel()
        cpu_share = (await group.tell(FLOODED, "cpu_s") - before_s) / (time.monotonic() - began)
        counters = await group.tell(FLOODED, "counters", FLOODED)
        sent = int((await ended)[0])
    finally:
        await group.end()
    quarter = max(1, len(rss) // 4)
    return {
        "flood": {"sent": sent, "per_s": round(sent / (60 * minutes)), "shapes": SHAPES},
        "calm": calm.figures(),
        "flooded": flooded.figures(),
        "cpu_share": round(cpu_share, 3),
        "rss_bytes": {
            "first": rss[0],
            "max": max(rss),
            "last": rss[-1],
            "growth_bytes": round(statistics.mean(rss[-quarter:]) - statistics.mean(rss[quarter : 2 * quarter])),
        },
        "counters": counters,
    }


async def _watch(pid: int, rss: list[int]) -> None:
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    while True:
        rss.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page_bytes)
        await asyncio.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=3000.0, help="datagrams a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="where the JSON goes; default: standard output")
    parser.add_argument("--to", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.to:
        host, _, port = given.to.partition(":")
        print(flood((host, int(port)), rate=given.rate, seconds=60 * given.minutes, seed=given.seed))
        return 0
    document: dict[str, Any] = {
        "schema": "p2pc.benchmark.flood/1",
        "commit": commit(),
        "machine": machine(),
        "nodes": given.nodes,
        "minutes": given.minutes,
        "seed": given.seed,
    }
    document |= asyncio.run(measure(nodes=given.nodes, minutes=given.minutes, rate=given.rate, seed=given.seed))
    write(document, given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
