"""Plays what goes wrong in a run on its world, and undoes it.  `faults` says what and when.

`inject` plays one fault and counts it in `world.fired` when it really took effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, cast

from p2pcompute.errors import StoreError, UsageError
from p2pcompute.host.interfaces import Address, ByteStream
from p2pcompute.limits import PROTOCOL_MAX, PROTOCOL_MIN
from p2pcompute.simulation.faults import KINDS, Fault, FaultKind
from p2pcompute.simulation.host import HostDown, SimHost
from p2pcompute.simulation.machines import SimListener
from p2pcompute.simulation.world import World
from p2pcompute.transport.messages import encode_message
from p2pcompute.wire import cbor
from p2pcompute.wire.frames import FrameReader, frame

_FOUNDER: Final = 0
_VICTIM_TRIES: Final = 8
FLAPS: Final = 6
CANCELLED_TASKS: Final = 20
SLOW_LAG_S: Final = 0.05
"""How late a gray node answers on streams, for each time that it is slower."""


async def inject(world: World, fault: Fault) -> None:
    """Play a fault: wait for its time, do it, wait, undo it.  Ends early, undone, when the world heals."""
    await world.pause(fault.at_s - world.now)
    if not world.is_healing:
        await _KINDS[fault.kind](world, fault)


# --- victims --------------------------------------------------------------------------------------


@contextmanager
def _victim(world: World, fault: Fault, *, spared: int | None = None) -> Iterator[int | None]:
    """The number of the member that is hit, which no other fault touches meanwhile; None when nobody can be."""
    members = range(len(world.mesh.members))
    owners = sorted({job.owner for job in world.jobs}) if fault.is_at_owner else []
    chosen = owners[int(fault.who[0] * len(owners))] if owners else members[int(fault.who[0] * len(members))]
    for step in range(min(_VICTIM_TRIES, len(members))):
        number = (chosen + step) % len(members)
        if number not in world.claimed and number != spared and world.mesh.members[number].node is not None:
            break
    else:
        yield None
        return
    world.claimed[number] = None
    _took_effect(world, fault, (number,))
    try:
        yield number
    finally:
        del world.claimed[number]
        world.record("fault-end", node=world.mesh.members[number].host.name, fault=fault.number)


def _took_effect(world: World, fault: Fault, numbers: tuple[int, ...]) -> None:
    world.fired[fault.kind] += 1
    names = [world.mesh.members[number].host.name for number in numbers[:20]]
    world.record(
        "fault", node=names[0] if names else "", fault=fault.number, what=fault.kind, nodes=names,
        duration_s=fault.duration_s, amount=fault.amount,
    )  # fmt: skip


def _scaled(fault: Fault, low: float, high: float) -> float:
    """`amount` on a logarithmic scale."""
    return float(low * (high / low) ** fault.amount)


def _both_sides(fault: Fault, low: float, high: float) -> float:
    """`amount` on a logarithmic scale with a sign."""
    size = low * (high / low) ** abs(2 * fault.amount - 1)
    return float(size if fault.amount >= 0.5 else -size)


# --- nodes come and go ----------------------------------------------------------------------------


async def _crash(world: World, fault: Fault) -> None:
    with _victim(world, fault) as number:
        if number is not None:
            await world.crash(number, is_silent=fault.kind == "power-loss")
            await world.pause(fault.duration_s)
            await world.revive(number)


async def _stop(world: World, fault: Fault) -> None:
    with _victim(world, fault) as number:
        if number is not None:
            await world.stop(number, drain=fault.amount < 0.5)
            await world.pause(fault.duration_s)
            await world.revive(number)


async def _crash_loop(world: World, fault: Fault) -> None:
    """It dies again and again, some time after each start."""
    with _victim(world, fault) as number:
        if number is None:
            return
        alive_s = _scaled(fault, 0.02, 5.0)
        for _ in range(8):
            await world.crash(number)
            await world.pause(0.2)
            await world.revive(number)
            await world.pause(alive_s)
            if world.is_healing:
                return


async def _mass_kill(world: World, fault: Fault) -> None:
    """30 to 70 % of all nodes go at once, half of them in silence, and come back together."""
    rng = world.rng(f"fault {fault.number}")
    members = world.mesh.members
    free = [number for number, one in enumerate(members) if one.node is not None and number not in world.claimed]
    chosen = sorted(rng.sample(free, int(len(free) * (0.3 + 0.4 * fault.amount))))
    if not chosen:
        return
    world.claimed.update(dict.fromkeys(chosen))
    _took_effect(world, fault, tuple(chosen))
    await asyncio.gather(*[world.crash(number, is_silent=rng.random() < 0.5) for number in chosen])
    world.mass_exit()
    await world.pause(fault.duration_s)
    for number in chosen:
        await world.revive(number)
        del world.claimed[number]


# --- disks ----------------------------------------------------------------------------------------


async def _disk_loss(world: World, fault: Fault) -> None:
    """The node comes back with an empty store; it keeps its identity and its group, which live elsewhere."""
    with _victim(world, fault) as number:
        if number is not None:
            await world.crash(number, is_silent=True)
            world.mesh.members[number].host.disk.erase()
            world.lose_disk(number)
            await world.pause(fault.duration_s)
            await world.revive(number)


async def _old_disk(world: World, fault: Fault) -> None:
    """What was durable is not: the end of it is torn off (a disk that lies about its syncs), or all of a while."""
    with _victim(world, fault) as number:
        if number is None:
            return
        disk = world.mesh.members[number].host.disk
        image = disk.image()
        await world.pause(_scaled(fault, 0.005, 2.0) if fault.kind == "torn-tail" else fault.duration_s)
        await world.crash(number, is_silent=True)
        disk.restore(image)
        world.lose_disk(number)
        await world.pause(1.0)
        await world.revive(number)


async def _bad_disk(world: World, fault: Fault) -> None:
    with _victim(world, fault) as number:
        if number is None:
            return
        disk = world.mesh.members[number].host.disk
        try:
            if fault.kind == "disk-full":
                disk.is_full = True
            elif fault.kind == "io-errors":
                disk.is_broken = True
            else:
                disk.slowness = _scaled(fault, 3.0, 1000.0)
            await world.pause(fault.duration_s)
        finally:
            disk.is_full = disk.is_broken = False
            disk.slowness = 1.0


# --- machines -------------------------------------------------------------------------------------


async def _slow(world: World, fault: Fault) -> None:
    """A gray node: tasks and disk are up to 100 times slower, replies come late, and it still answers pings."""
    with _victim(world, fault) as number:
        if number is None:
            return
        host = world.mesh.members[number].host
        model, factor = host.runner_model, _scaled(fault, 5.0, 100.0)
        try:
            host.set_runner(replace(model, speed=model.speed / factor))
            host.disk.slowness = factor
            host.machine.lag_s = SLOW_LAG_S * factor
            await world.pause(fault.duration_s)
        finally:
            host.set_runner(model)
            host.disk.slowness = 1.0
            host.machine.lag_s = 0.0


async def _memory(world: World, fault: Fault) -> None:
    """Memory runs out: what runs is killed, and so is much of what starts."""
    with _victim(world, fault) as number:
        if number is None:
            return
        host = world.mesh.members[number].host
        model = host.runner_model
        try:
            host.set_runner(replace(model, death=max(model.death, 0.2 + 0.6 * fault.amount)))
            host.runner.kill_busy()
            await world.pause(fault.duration_s)
        finally:
            host.set_runner(model)


async def _clock(world: World, fault: Fault) -> None:
    """The wall clock is wrong by up to an hour, steps by up to a minute, or both clocks drift by up to 500 ppm."""
    with _victim(world, fault) as number:
        if number is None:
            return
        clock = world.mesh.members[number].host.clock
        wrong_s = 0.0
        try:
            if fault.kind == "clock-drift":
                clock.set_rate(1.0 + _both_sides(fault, 1e-6, 5e-4))
            else:
                wrong_s = _both_sides(fault, 0.01, 3600.0 if fault.kind == "clock-offset" else 60.0)
            clock.wall_skew_s += wrong_s
            await world.pause(fault.duration_s)
        finally:
            clock.wall_skew_s -= wrong_s
            if fault.kind == "clock-drift":
                clock.set_rate(1.0)


async def _suspend(world: World, fault: Fault) -> None:
    with _victim(world, fault) as number:
        if number is None:
            return
        host = world.mesh.members[number].host
        host.suspend()
        try:
            await world.pause(fault.duration_s)
        finally:
            host.resume()


# --- network --------------------------------------------------------------------------------------


async def _partition(world: World, fault: Fault) -> None:
    """Some nodes and the others lose each other: both ways, one way, with bridges between, or again and again."""
    rng = world.rng(f"fault {fault.number}")
    members = world.mesh.members
    if len(members) < 2:
        return
    chosen = sorted(rng.sample(range(len(members)), 1 + int(fault.amount * (len(members) - 1))))
    apart = frozenset(chosen)
    one = [members[number].host.machine for number in chosen]
    other = [member.host.machine for number, member in enumerate(members) if number not in apart]
    if fault.kind == "partition-partial":
        other = other[: len(other) // 2 + 1]  # the rest sees both sides
    _took_effect(world, fault, tuple(chosen))
    network = world.simulation.network
    turns = FLAPS if fault.kind == "partition-flapping" else 1
    for _ in range(turns):
        partition = network.part(one, other, is_one_way=fault.kind == "partition-one-way")
        await world.pause(fault.duration_s / turns)
        network.join(partition)
        if turns > 1:
            await world.pause(fault.duration_s / turns)


async def _bad_network(world: World, fault: Fault) -> None:
    """Packets of all nodes are lost, late, doubled or held up."""
    changes: dict[str, float]
    match fault.kind:
        case "loss":
            changes = {"loss": _scaled(fault, 0.01, 0.4)}
        case "loss-burst":
            changes = {"burst_share": 0.05 + 0.45 * fault.amount, "burst_s": 2.0, "burst_loss": 0.9}
        case "delay":
            changes = {"jitter": _scaled(fault, 2.0, 100.0)}
        case "duplicate":
            changes = {"duplicate": _scaled(fault, 0.01, 0.9)}
        case _:
            changes = {"reorder": _scaled(fault, 0.01, 0.9), "reorder_s": 2.0}
    _took_effect(world, fault, ())
    world.network_changes[fault.number] = changes
    world.fit_network()
    await world.pause(fault.duration_s)
    del world.network_changes[fault.number]
    world.fit_network()


async def _bandwidth(world: World, fault: Fault) -> None:
    """A node's access line collapses, down to that of an old modem."""
    with _victim(world, fault) as number:
        if number is None:
            return
        network, machine = world.simulation.network, world.mesh.members[number].host.machine
        bytes_per_s = _scaled(fault, 4_000.0, 100_000.0)
        network.set_line(machine, up_bytes_per_s=bytes_per_s, down_bytes_per_s=2 * bytes_per_s)
        await world.pause(fault.duration_s)
        network.unset_line(machine)


async def _ip_change(world: World, fault: Fault) -> None:
    """Not of the founder, whose address everybody was given: a node that has moved while it is cut off, and lost its
    disk, finds the others by that or not at all."""
    with _victim(world, fault, spared=_FOUNDER) as number:
        if number is not None:
            world.simulation.network.move(world.mesh.members[number].host.machine)


# --- versions -------------------------------------------------------------------------------------


async def _version_skew(world: World, fault: Fault) -> None:
    """A node is updated to a build that speaks a later protocol, half of the time together with ours; and back."""
    with _victim(world, fault) as number:
        if number is None:
            return
        oldest = PROTOCOL_MIN if fault.amount < 0.5 else PROTOCOL_MAX + 1
        world.dress[number] = lambda host: speak(host, (oldest, PROTOCOL_MAX + 1))
        await world.stop(number, drain=False)
        await world.revive(number)
        await world.pause(fault.duration_s)
        del world.dress[number]
        await world.stop(number, drain=False)
        await world.revive(number)


def speak(host: SimHost, versions: tuple[int, int]) -> None:
    """Let a host that has just been made say in every handshake that it speaks these protocol versions."""
    net = host.net
    dial, listen = net.dial_stream, net.listen_stream

    async def dial_stream(address: Address, preamble: bytes, *, timeout_s: float) -> ByteStream:
        return cast(ByteStream, _Skewed(await dial(address, preamble, timeout_s=timeout_s), versions))

    async def listen_stream(port: int, *, accept: Callable[[ByteStream, bytes], None], **how: Any) -> SimListener:
        def skewed(stream: ByteStream, preamble: bytes) -> None:
            accept(cast(ByteStream, _Skewed(stream, versions)), preamble)

        return await listen(port, accept=skewed, **how)

    net.dial_stream = dial_stream  # type: ignore[method-assign, assignment]
    net.listen_stream = listen_stream  # type: ignore[method-assign]


class _Skewed:
    """A stream whose first message, HELLO or AUTH, is changed on its way out."""

    def __init__(self, stream: ByteStream, versions: tuple[int, int]) -> None:
        self._stream = stream
        self._versions: tuple[int, int] | None = versions

    def write(self, data: bytes) -> None:
        if self._versions is not None:
            (body,) = FrameReader().feed(data)
            kind, request, message = cbor.decode(body)
            message["versions"] = list(self._versions)
            data, self._versions = frame(encode_message(kind, request, message)), None
        self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# --- people ---------------------------------------------------------------------------------------


async def _interfere(world: World, fault: Fault) -> None:
    """The owner of a job cancels it, or the first of its tasks, or runs again what has ended."""
    if not world.jobs:
        return
    job = world.jobs[int(fault.who[0] * len(world.jobs))]
    member = world.mesh.members[job.owner]
    node = member.node
    if node is None:
        return
    is_all, is_now = fault.amount < 0.5, int(fault.amount * 1000) % 2 == 0
    try:
        if fault.kind == "retry":
            await member.host.call(node.retry(job.job_id, failed_only=is_all))
        else:
            job.may_cancel = True
            indices = None if is_all else range(min(CANCELLED_TASKS, job.acknowledged))
            await member.host.call(node.cancel(job.job_id, indices=indices, now=is_now))
    except (HostDown, StoreError, UsageError):
        return  # whether it was done is not known
    _took_effect(world, fault, (job.owner,))


_KINDS: Final[dict[FaultKind, Callable[[World, Fault], Awaitable[None]]]] = {
    "crash": _crash,
    "power-loss": _crash,
    "stop": _stop,
    "crash-loop": _crash_loop,
    "mass-kill": _mass_kill,
    "disk-loss": _disk_loss,
    "torn-tail": _old_disk,
    "old-snapshot": _old_disk,
    "disk-full": _bad_disk,
    "io-errors": _bad_disk,
    "slow-disk": _bad_disk,
    "slow": _slow,
    "memory": _memory,
    "clock-offset": _clock,
    "clock-drift": _clock,
    "clock-step": _clock,
    "suspend": _suspend,
    "partition": _partition,
    "partition-one-way": _partition,
    "partition-partial": _partition,
    "partition-flapping": _partition,
    "loss": _bad_network,
    "loss-burst": _bad_network,
    "delay": _bad_network,
    "bandwidth": _bandwidth,
    "duplicate": _bad_network,
    "reorder": _bad_network,
    "ip-change": _ip_change,
    "version-skew": _version_skew,
    "cancel": _interfere,
    "retry": _interfere,
}
assert set(_KINDS) == set(KINDS)
