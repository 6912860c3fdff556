#!/usr/bin/env python3
"""Check a file of seeds: does each line parse, and, on request, what it leads to and who answers there.

    python3 check_seeds.py seeds.txt             each line is a domain or HOST:PORT, none twice
    python3 check_seeds.py --ask seeds.txt       and leads to addresses
    python3 check_seeds.py --ping seeds.txt      and a node of this installation's group answers at one of them
    python3 check_seeds.py --setting seeds.txt   print them for: p2pc config set node.seeds …

Run it with the Python that p2pcompute is installed for.  Exit code: 0 all good, 1 some are not, 2 the file is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from p2pcompute.config import parse_name_server, parse_seed
from p2pcompute.dht.exchange import DhtCounters, Exchange
from p2pcompute.dht.messages import RUN_BYTES, Message, Ping, Pong
from p2pcompute.dht.reach import Reach
from p2pcompute.errors import P2pcError, UsageError
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.paths import resolve_paths
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import create_identity
from p2pcompute.limits import SEEDS_MAX
from p2pcompute.node.seeds import Seed
from p2pcompute.transport.credentials import group_hint
from p2pcompute.transport.datagrams import Datagrams
from p2pcompute.trust.group_file import load_group
from p2pcompute.trust.groups import Group


def read_seeds(text: str) -> list[tuple[str, int | None]]:
    """Return the seeds of a file in its order.

    Raises:
        UsageError: a line is none, or there are two of one, or too many.
    """
    found: list[tuple[str, int | None]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            seed = parse_seed(words[0])
        except UsageError as error:
            raise UsageError(f"line {number}: {error.what}", error.why, error.fix) from error
        if seed in found:
            raise UsageError(f"line {number}: {words[0]} is there twice", "", "leave one out")
        found.append(seed)
    if not 0 < len(found) <= SEEDS_MAX:
        raise UsageError(f"{len(found)} seeds", f"a node takes 1 to {SEEDS_MAX}", "name several hosts in one domain")
    return found


class Caller:
    """Pings addresses as somebody who has the group's network key: whoever answers is in the group."""

    def __init__(self, host: Host, group: Group) -> None:
        self._host = host
        self._group = group
        self._scope = TaskScope("check")
        self._datagrams = Datagrams(host, self._scope)

    async def start(self) -> None:
        await self._datagrams.start(0, loopback_only=False)
        crypto = self._host.crypto
        self._exchange = Exchange(
            self._host.clock,
            crypto,
            create_identity(crypto),
            self._datagrams.bind_group(self._group.network_key, self._receive),
            DhtCounters(),
            group_id=self._group.group_id,
            run=crypto.random_bytes(RUN_BYTES),
            reach=Reach(self._host.net.local_addresses()),
            is_contact=lambda _key, _address: False,
            on_request=lambda _: None,  # it is not there to be found
            on_reply=lambda _: None,
            on_timeout=lambda *_: None,
            on_rtt=lambda _key, _rtt_s: None,
        )

    def _receive(self, body: bytes, source: Address) -> None:
        self._exchange.receive(body, source)

    async def ping(self, address: Address) -> str | None:
        """Return the name of the node that answers there; None after 2 s."""
        reply: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        self._exchange.ask(None, address, [Ping()], reply.set_result)
        message = await reply
        return (message.name or "a node") if isinstance(message, Pong) else None

    async def close(self) -> None:
        self._exchange.close()
        self._datagrams.stop()
        await self._scope.close()


async def ask(seeds: list[tuple[str, int | None]], name_servers: list[tuple[str, int]], group: Group | None) -> bool:
    """Print what each seed leads to, and with a group, who answers there; True when all are good."""
    net = RealNet(name_servers=name_servers)
    absent: Any = None
    host = Host(
        clock=RealClock(), rng=SystemRng(), crypto=RealCrypto(), net=net, store=absent, runner=absent, probe=absent
    )
    caller = Caller(host, group) if group is not None else None
    hint = group_hint(group.network_key) if group is not None else None
    is_good = True
    try:
        if caller is not None:
            await caller.start()
        for name, port in seeds:
            seed = Seed(host, name, port)
            addresses = await seed.ask(hint)
            view = seed.view()
            print(f"{seed.text}: {view.trouble or 'good'}")
            for reason, count in view.ignored.items():
                print(f"  ignored: {count} × {reason}")
            answers = []
            for address in addresses:
                name_there = await caller.ping(address) if caller is not None else None
                answers.append(name_there)
                print(f"  {address}" + ("" if caller is None else f"  {name_there or 'does not answer'}"))
            is_good = is_good and bool(addresses) and (caller is None or any(answers))
    finally:
        if caller is not None:
            await caller.close()
        await net.close()
    return is_good


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check a file of seeds.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--ask", action="store_true", help="look them up")
    parser.add_argument("--ping", action="store_true", help="and see whether nodes of this installation's group answer")
    parser.add_argument("--setting", action="store_true", help="print them as a value of node.seeds")
    parser.add_argument("--dns", action="append", default=[], metavar="ADDRESS[:PORT]", help="name server to ask")
    given = parser.parse_args(words)
    try:
        seeds = read_seeds(given.file.read_text(encoding="utf-8"))
        name_servers = [parse_name_server(text) for text in given.dns]
        group = load_group(resolve_paths().data) if given.ping else None
        if given.ping and group is None:
            raise UsageError("this installation is in no group", "so nobody would answer it", "run this as a member")
    except (P2pcError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.setting:
        print(",".join(name if port is None else str(Address(name, port)) for name, port in seeds))
        return 0
    if given.ask or given.ping:
        return 0 if asyncio.run(ask(seeds, name_servers, group)) else 1
    print(f"{len(seeds)} seeds, all well formed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
