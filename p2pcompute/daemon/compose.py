"""The real node of this machine: identity, group and host put together as the settings say."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from p2pcompute.config import Settings, parse_peer, parse_slots
from p2pcompute.execution.processes import ProcessRunner
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.paths import MachinePaths
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.real_probe import RealProbe
from p2pcompute.host.real_store import SqliteStore
from p2pcompute.identity.files import load_or_create_identity
from p2pcompute.node.membership import clean_name
from p2pcompute.node.node import Node, NodeOptions
from p2pcompute.trust.groups import load_group, save_group

log = logging.getLogger("p2pcompute.node")


def report_bug(name: str, error: BaseException) -> None:
    """Log an exception that left a background task: it is a bug of ours."""
    log.error("task %s failed", name, exc_info=error)


async def build_onlooker(paths: MachinePaths, settings: Settings) -> tuple[Node, Callable[[], Awaitable[None]]]:
    """Return a node that only shows what is kept: it has no slot and no network.

    Raises:
        IdentityError, StoreError: as `build_node`.
    """
    return await build_node(paths, settings, is_onlooker=True)


async def build_node(
    paths: MachinePaths, settings: Settings, *, is_onlooker: bool = False
) -> tuple[Node, Callable[[], Awaitable[None]]]:
    """Return the node, not started, and the call that closes what it stands on.

    Raises:
        IdentityError: the key or group file cannot be used here.
        StoreError: the store cannot be used.
    """
    clock, crypto = RealClock(), RealCrypto()
    identity = load_or_create_identity(paths.data, crypto, machine_id=paths.machine_id)
    group = load_group(paths.data)
    name = clean_name(settings.node.name or socket.gethostname().split(".")[0])
    probe = RealProbe(paths.data)
    cpus = probe.static()["cpus"]
    assert isinstance(cpus, float)
    async with AsyncExitStack() as undo:
        store = await SqliteStore.open(paths.store, blob_cache_bytes=settings.store.cache_bytes)
        undo.push_async_callback(store.close)
        net = RealNet(interfaces=settings.node.interfaces or None, on_error=report_bug)
        undo.push_async_callback(net.close)
        runner = ProcessRunner(
            store.blobs, paths.data / "work", 0 if is_onlooker else parse_slots(settings.node.slots, cpus), clock,
            node_name=name,
        )
        undo.push_async_callback(runner.close)
        contacts: list[Address] = []
        for peer in settings.node.peers if not is_onlooker else ():
            found = await net.resolve(*parse_peer(peer))
            if not found:
                log.warning("no address is known for the first contact %s", peer)
            contacts += found
        node = Node(
            Host(clock=clock, rng=SystemRng(), crypto=crypto, net=net, store=store, runner=runner, probe=probe),
            identity,
            group,
            NodeOptions(
                name=name, port=settings.node.port, first_contacts=tuple(contacts), discover=settings.node.discover,
                accepts_others=settings.node.accept != "none", is_networked=not is_onlooker,
            ),
            keep_group=lambda changed: save_group(paths.data, changed),
            on_error=report_bug,
        )
        return node, undo.pop_all().aclose
    raise AssertionError("unreachable")
