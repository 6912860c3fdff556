"""Embedded nodes put together: alone, or as a delegate of this machine's installation."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.config import StoreSettings
from p2pcompute.errors import ChannelLost, NodeUnavailable
from p2pcompute.execution.environments import Environments
from p2pcompute.execution.levels import Level
from p2pcompute.execution.processes import ProcessRunner
from p2pcompute.execution.programs import this_machine
from p2pcompute.host.interfaces import Address, DnsAnswer, DnsKind, Host, LanAnnouncement
from p2pcompute.host.memory_store import MemoryStore
from p2pcompute.host.real_blobs import FileBlobs
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_probe import RealProbe
from p2pcompute.identity.files import load_or_create_identity
from p2pcompute.identity.keys import Identity, create_identity, delegate
from p2pcompute.limits import DELEGATION_TTL_S_MAX
from p2pcompute.node.membership import clean_name
from p2pcompute.node.node import Node
from p2pcompute.node.options import NodeOptions
from p2pcompute.places import find_paths
from p2pcompute.trust.group_file import load_own_group
from p2pcompute.trust.groups import Group
from p2pcompute.trust.levels import Levels, load_levels
from p2pcompute.trust.log_file import FileLogs, LogKeeper, MemoryLogs

if TYPE_CHECKING:
    from p2pcompute.api.options import EmbeddedOptions
    from p2pcompute.config import Settings
    from p2pcompute.host.paths import MachinePaths

log = logging.getLogger("p2pcompute.embedded")

DELEGATION_S: Final = min(30 * 86400.0, DELEGATION_TTL_S_MAX / 2)
"""How long a program may run as the installation's delegate."""
MEET_S: Final = 3.0
"""Wait for the first channel to this machine's node."""


class AbsentNet:
    """The network of a node on its own: there is none."""

    async def bind_datagram(self, port: int, *, loopback_only: bool) -> Any:
        raise _absent()

    async def listen_stream(self, port: int, **_: Any) -> Any:
        raise _absent()

    async def dial_stream(self, address: Address, preamble: bytes, *, timeout_s: float) -> Any:
        raise _absent()

    async def resolve(self, host: str, port: int) -> list[Address]:
        return []

    async def ask_dns(self, name: str, kind: DnsKind) -> DnsAnswer:
        raise _absent()

    def local_addresses(self) -> list[str]:
        return []

    async def announce(self, announcement: LanAnnouncement | None) -> None:
        return None

    async def browse(self, seen: Any) -> None:
        return None

    async def close(self) -> None:
        return None


def _absent() -> ChannelLost:
    return ChannelLost("this node has no network", "it is embedded and works alone")


def report_bug(name: str, error: BaseException) -> None:
    """Log an exception that left a background task: it is a bug of ours."""
    log.error("task %s failed", name, exc_info=error)


async def build_alone(undo: AsyncExitStack, options: EmbeddedOptions) -> tuple[Node, FileBlobs]:
    """Return a started node without a network; `undo` takes it down."""
    worker_count = options.worker_count
    if worker_count is None:
        worker_count = _core_count()
    crypto = RealCrypto()
    return await _start(
        undo,
        options.name or "this process",
        create_identity(crypto),
        worker_count=worker_count,
        crypto=crypto,
        group=None,
        net=AbsentNet(),
        contacts=(),
    )


async def build_delegate(
    undo: AsyncExitStack, options: EmbeddedOptions, paths: MachinePaths, settings: Settings, status: dict[str, Any]
) -> tuple[Node, FileBlobs]:
    """Return a started node that is a member through this machine's installation; `undo` takes it down.

    Raises:
        P2pcError: key or group cannot be used, or the installation's node cannot be reached.
    """
    from p2pcompute.host.real_net import RealNet

    crypto, clock = RealCrypto(), RealClock()
    installation = load_or_create_identity(paths.base, crypto, machine_id=paths.machine_id)
    group = load_own_group(paths.data, crypto, installation.installation)
    if group is None:
        raise NodeUnavailable("this machine's node has no group yet", "it is starting", "try again")
    identity = delegate(installation, crypto, expires_wall=clock.wall() + DELEGATION_S, roles=("submit", "work"))
    net = RealNet(interfaces=settings.node.interfaces or None, on_error=report_bug)
    contact = Address("127.0.0.1", status["node"]["port"])
    name = options.name or f"{status['node'].get('name', '')}/{os.getpid()}"
    node, blobs = await _start(
        undo,
        name,
        identity,
        worker_count=options.worker_count or 0,
        crypto=crypto,
        group=group,
        net=net,
        contacts=(contact,),
        levels=Levels(installation.public_key, load_levels(paths.data)),
        logs=MemoryLogs({group.group_id: FileLogs(paths.data).load(group.group_id)}),
    )
    await _meet(node, installation.public_key, contact)
    return node, blobs


async def _meet(node: Node, key: bytes, contact: Address) -> None:
    """Open the channel to the installation's node: work leaves at once over it.

    Raises:
        NodeUnavailable: it did not answer in time.
    """
    try:
        async with asyncio.timeout(MEET_S):
            await node.channels.connect(key, [contact])
    except (TimeoutError, ChannelLost) as error:
        raise NodeUnavailable(
            "this machine's node does not answer on its port", f"{contact}: {error}", "look at it: p2pc status"
        ) from error


async def _start(
    undo: AsyncExitStack,
    name: str,
    identity: Identity,
    *,
    worker_count: int,
    crypto: RealCrypto,
    group: Group | None,
    net: Any,
    contacts: Sequence[Address],
    levels: Levels | None = None,
    logs: LogKeeper | None = None,
) -> tuple[Node, FileBlobs]:
    directory = Path(tempfile.mkdtemp(prefix="p2pc-"))
    undo.callback(shutil.rmtree, directory, ignore_errors=True)
    clock = RealClock()
    store = MemoryStore(directory / "blobs")
    undo.push_async_callback(store.close)
    undo.push_async_callback(net.close)
    # Of others it takes nothing: it is a program of this user's, and the node beside it is there for that.
    runner = ProcessRunner(
        store.blobs,
        directory / "work",
        worker_count,
        clock,
        node_name=name,
        others=Level.NONE,
        environments=Environments(find_paths().environments, bytes_max=StoreSettings().environments_bytes),
    )
    probe = RealProbe(directory)
    undo.callback(probe.close)
    host = Host(clock=clock, rng=SystemRng(), crypto=crypto, net=net, store=store, runner=runner, probe=probe)
    node = Node(
        host,
        identity,
        group,
        NodeOptions(
            name=clean_name(name),
            first_contacts=tuple(contacts),
            discover=False,
            accepts_others=False,
            is_durable=False,
            is_networked=group is not None,
            machine=this_machine(),
        ),
        keep_group=lambda _group: None,
        on_error=report_bug,
        levels=levels,
        logs=logs,
    )
    undo.push_async_callback(node.stop, drain=False)
    await node.start()
    return node, store.blobs


def _core_count() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, len(affinity(0)) if affinity is not None else os.cpu_count() or 1)
