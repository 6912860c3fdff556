"""The real node of this machine: identity, group and host put together as the settings say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from p2pcompute.config import (
    Settings,
    parse_labels,
    parse_name_server,
    parse_peer,
    parse_seed,
    parse_slots,
    parse_weight,
)
from p2pcompute.daemon.admissions import admissions_of
from p2pcompute.daemon.policies import find_policy
from p2pcompute.daemon.shares import share_of
from p2pcompute.errors import IdentityError, StoreError
from p2pcompute.execution.cgroups import Cgroups, NoCgroup, find_own
from p2pcompute.execution.environments import Environments
from p2pcompute.execution.levels import Level
from p2pcompute.execution.processes import ProcessRunner
from p2pcompute.execution.programs import this_machine
from p2pcompute.execution.sandbox import NoSandbox, find_pasta
from p2pcompute.execution.sandbox_trial import isolation
from p2pcompute.host.interfaces import Address, Host
from p2pcompute.host.paths import MachinePaths
from p2pcompute.host.real_clock import RealClock, SystemRng
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.host.real_net import RealNet
from p2pcompute.host.real_probe import RealProbe
from p2pcompute.host.real_store import SqliteStore
from p2pcompute.identity.files import KEY_FILE, load_or_create_identity
from p2pcompute.node.comfort_service import ComfortSettings
from p2pcompute.node.membership import clean_name
from p2pcompute.node.node import Node
from p2pcompute.node.options import NodeOptions
from p2pcompute.resources.matching import check_acceptance, only_wasm
from p2pcompute.trust.group_file import GROUP_FILE, load_own_group, save_group
from p2pcompute.trust.levels import Levels, load_levels, save_levels
from p2pcompute.trust.log_file import FileLogs
from p2pcompute.trust.pins import PINS_FILE, Pins, load_pins, save_pins

log = logging.getLogger("p2pcompute.node")


def report_bug(name: str, error: BaseException) -> None:
    """Log an exception that left a background task: it is a bug of ours."""
    log.error("task %s failed", name, exc_info=error)


def _check_key_is_there(base: Path, directory: Path) -> None:
    """Refuse to make a new key beside a membership of the old one: this node would silently be alone.

    Raises:
        IdentityError: there is a group and no key.
    """
    key, group = base / KEY_FILE, directory / GROUP_FILE
    if group.exists() and not key.exists():
        raise IdentityError(
            "the key of this installation is gone, but its group file is there",
            f"{key} is missing; with a new key this node would not be a member any more",
            f"restore it from a backup, or start anew (and join again): mv {group} {group}.old",
            code="identity-gone",
        )


async def build_onlooker(paths: MachinePaths, settings: Settings) -> tuple[Node, Callable[[], Awaitable[None]]]:
    """Return a node that only shows what is kept: it has no slot and no network.

    Raises:
        IdentityError, StoreError: as `build_node`.
    """
    return await build_node(paths, settings, is_onlooker=True)


def _accepted(condition: str, *, is_only_wasm: bool) -> str:
    """Return on which condition work of others is taken.

    Raises:
        ConfigError: `condition` is none.
    """
    check_acceptance(condition)
    return check_acceptance(only_wasm(condition)) if is_only_wasm else condition


def _has_pasta() -> bool:
    """Whether sandboxes can be given a network."""
    try:
        return bool(find_pasta())
    except NoSandbox as error:
        log.warning("tasks of others get no network here, although node.network is full: %s; %s", error, error.fix)
        return False


async def build_node(
    paths: MachinePaths, settings: Settings, *, is_onlooker: bool = False
) -> tuple[Node, Callable[[], Awaitable[None]]]:
    """Return the node, not started, and the call that closes what it stands on.

    Raises:
        IdentityError: the key or group file cannot be used here.
        StoreError: the store cannot be used.
    """
    clock, crypto = RealClock(), RealCrypto()
    _check_key_is_there(paths.base, paths.data)
    identity = load_or_create_identity(paths.base, crypto, machine_id=paths.machine_id)
    group = load_own_group(paths.data, crypto, identity.installation)
    name = clean_name(settings.node.name or socket.gethostname().split(".")[0])
    hidden = (paths.base, paths.data, paths.store, paths.state, paths.config_file.parent, paths.socket.parent)
    accept = "none" if is_onlooker else settings.node.accept
    trying = asyncio.ensure_future(asyncio.to_thread(isolation, accept, hidden))
    probe = RealProbe(paths.data)
    async with AsyncExitStack() as undo:
        undo.callback(probe.close)
        undo.push_async_callback(asyncio.wait, [trying])
        store = await SqliteStore.open(paths.store, blob_cache_bytes=settings.store.cache_bytes)
        undo.push_async_callback(store.close)
        net = RealNet(
            interfaces=settings.node.interfaces or None,
            name_servers=[parse_name_server(server) for server in settings.node.dns],
            on_error=report_bug,
        )
        undo.push_async_callback(net.close)
        work = paths.data / "work"
        if work.exists() and not work.is_dir():
            raise StoreError(
                f"{work} is not a directory",
                "the tasks' directories belong there",
                f"move it away: mv {work} {work}.old",
                code="work",
            )
        offered = await trying
        if offered.fix:
            what = "WASM modules of others, and no other work of theirs" if offered.only_wasm else "no work of others"
            log.warning("this node takes %s: %s; %s", what, offered.why, offered.fix)
        runner = ProcessRunner(
            store.blobs,
            work,
            0 if is_onlooker else parse_slots(settings.node.slots, probe.cpus()),
            clock,
            node_name=name,
            others=offered.level,
            only_wasm=offered.only_wasm,
            hidden=hidden,
            environments=Environments(
                paths.environments,
                bytes_max=settings.store.environments_bytes,
                is_confined=offered.level is not Level.PROCESS,
            ),
        )
        undo.push_async_callback(runner.close)
        if offered.level is Level.SANDBOX:
            with contextlib.suppress(NoCgroup, OSError):
                runner.cgroups = Cgroups(find_own())
        runner.rules.allows_network = settings.node.network == "full" and _has_pasta()
        contacts: list[Address] = []
        seeds = [parse_seed(seed) for seed in settings.node.seeds]
        for peer in settings.node.peers if not is_onlooker else ():
            found = await net.resolve(*parse_peer(peer))
            if not found:
                log.warning("no address is known for the first contact %s; it is looked up again later", peer)
                seeds.append(parse_peer(peer))
            contacts += found
        pins = Pins(load_pins(paths.data), lambda known: save_pins(paths.data, known), str(paths.data / PINS_FILE))
        node = Node(
            Host(clock=clock, rng=SystemRng(), crypto=crypto, net=net, store=store, runner=runner, probe=probe),
            identity,
            group,
            NodeOptions(
                name=name,
                port=settings.node.port,
                first_contacts=tuple(contacts),
                seeds=tuple(seeds),
                discover=settings.node.discover,
                accepts_others=offered.level is not Level.NONE,
                isolation=offered.level.value,
                accept_if=_accepted(settings.node.accept_if, is_only_wasm=offered.only_wasm),
                machine=this_machine(),
                labels=parse_labels(settings.node.labels),
                custodians=settings.node.custodians,
                gives_network=runner.rules.allows_network,
                grace_s=settings.node.grace_s,
                policy=find_policy(settings.node.policy),
                is_networked=not is_onlooker,
                group_name=paths.group,
                share=lambda: share_of(paths, parse_weight(settings.node.weight)),
                comfort=ComfortSettings.of(settings),
            ),
            keep_group=lambda changed: save_group(paths.data, changed),
            on_error=report_bug,
            admissions=() if is_onlooker else admissions_of(settings.admit, crypto, pins),
            pins=pins,
            levels=Levels(
                identity.installation, load_levels(paths.data), keep=lambda notes: save_levels(paths.data, notes)
            ),
            logs=FileLogs(paths.data),
        )
        runner.rules.trusts = node.placement.trusts
        node.on_warning = log.warning
        return node, undo.pop_all().aclose
    raise AssertionError("unreachable")
