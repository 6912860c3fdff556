"""The simulated network: machines, datagrams, LAN announcements, faults.

A `Machine` has one address (10.x.y.z, or loopback only) and the ports of all hosts on it; a `SimNet` is one
host's access, the simulated `host.interfaces.Net`.  Streams are in `streams`.

Model: one-way latency of a pair of machines is fixed by the seed (log-normal quantile picked by a hash of the
pair, so nothing is kept per pair), plus uniform jitter per packet; datagrams are lost independently; a cut pair
exchanges nothing.  Bandwidth is not modelled beyond the window of a stream.
Source: log-normal one-way delays with the spread of the King data set (1,740 DNS servers, p2psim).
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import math
import random
import statistics
import zlib
from asyncio import Future
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final

from p2pcompute.errors import ChannelLost, ConfigError, LocalProtocolError
from p2pcompute.host.interfaces import Address, ByteStream, LanAnnouncement, LanSighting
from p2pcompute.limits import DATAGRAM_QUEUE_MAX, PREAMBLE_BYTES
from p2pcompute.simulation.loop import SimulationLoop
from p2pcompute.simulation.streams import Dial, SimListener, SimStream
from p2pcompute.simulation.trace import Kind

LOOPBACK: Final = "127.0.0.1"
LOOPBACK_DELAY_S: Final = 30e-6
LAN_NOTICE_S: Final = 0.2
"""From an announcement to its sighting by others."""
LAN_EXPIRY_S: Final = 120.0
"""After which the announcement of a crashed host is withdrawn by those who saw it (mDNS time to live)."""
UDP_BYTES_MAX: Final = 65_507
"""What fits an IPv4 packet.  A real network takes it in fragments, so that receivers must refuse it themselves."""
MACHINES_MAX: Final = 1 << 24
_EPHEMERAL_FIRST: Final = 49152
_EPHEMERAL_COUNT: Final = 65536 - _EPHEMERAL_FIRST
_QUANTILES: Final = 1024
_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkModel:
    """Parameters of the network.  Delays are one-way, in seconds."""

    wan_median_s: float = 0.035
    wan_sigma: float = 0.6
    """Of the underlying normal: 90 % of the pairs lie between 13 and 94 ms."""
    lan_median_s: float = 0.0004
    lan_sigma: float = 0.3
    jitter: float = 0.2
    """A packet takes up to this fraction longer than its pair's base delay."""
    datagram_loss: float = 0.0
    """Probability that a datagram between two machines is lost; a lost piece of a stream is sent again."""

    def __post_init__(self) -> None:
        if not (0 <= self.datagram_loss < 1 and self.jitter >= 0 and self.wan_median_s > 0 and self.lan_median_s > 0):
            raise ValueError(f"impossible network model: {self}")


@functools.lru_cache(maxsize=16)
def _delays(median_s: float, sigma: float) -> tuple[float, ...]:
    """Quantiles of the log-normal distribution, ascending."""
    normal = statistics.NormalDist()
    return tuple(median_s * math.exp(sigma * normal.inv_cdf((i + 0.5) / _QUANTILES)) for i in range(_QUANTILES))


class Machine:
    """A computer: an address and the ports of all hosts on it."""

    __slots__ = ("_next_port", "address", "datagrams", "is_silent", "is_unplugged", "lan", "listeners", "number")

    def __init__(self, number: int, address: str, lan: str) -> None:
        self.number = number
        self.address = address
        """10.x.y.z, or 127.0.0.1 for a machine that has only loopback."""
        self.lan = lan
        self.datagrams: dict[int, SimDatagrams] = {}
        self.listeners: dict[int, SimListener] = {}
        self.is_silent = False
        """Lost power: answers nothing, not even with a refusal."""
        self.is_unplugged = False
        """Cut off from everything, itself included: it sleeps."""
        self._next_port = 0

    def take_port(self, port: int, *, taken: dict[int, Any]) -> int:
        """Return `port`, or a free one for 0.

        Raises:
            ConfigError: it is taken, as in the real host.
        """
        if port:
            if port in taken:
                raise ConfigError(f"port {port} cannot be used", "another process has it", "choose another port")
            return port
        for _ in range(_EPHEMERAL_COUNT):
            port = _EPHEMERAL_FIRST + self._next_port % _EPHEMERAL_COUNT
            self._next_port += 1
            if port not in self.datagrams and port not in self.listeners:
                return port
        raise ConfigError("no free port is left", f"all of {self.address} are in use")


@dataclass(slots=True)
class NetworkCounters:
    """Of the whole network, by reason."""

    datagrams_sent: int = 0
    datagrams_delivered: int = 0
    datagrams_lost: int = 0
    """By the model's loss."""
    datagrams_cut: int = 0
    """Between machines that are cut from each other."""
    datagrams_unreachable: int = 0
    """No such machine or port, or it is down."""
    datagrams_oversize: int = 0
    datagrams_overflow: int = 0
    """The receiver's queue was full."""
    streams_opened: int = 0
    streams_refused: int = 0
    streams_not_admitted: int = 0
    segments_delivered: int = 0
    segments_held: int = 0
    """Pieces of streams held back by a cut."""


class Network:
    """All machines and what lies between them.

    Args:
        seed: fixes latencies, jitter and loss.
        model: parameters; may be replaced while the simulation runs.
    """

    def __init__(self, loop: SimulationLoop, seed: str, model: NetworkModel) -> None:
        self.loop = loop
        self.model = model
        self.counters = NetworkCounters()
        self.machines: dict[str, Machine] = {}
        """By their 10.x.y.z address."""
        self.names: dict[str, Machine] = {}
        self.stalled: dict[SimStream, None] = {}
        """Streams that hold pieces back because of a cut."""
        self._machine_count = 0
        self._lans: dict[str, dict[SimNet, None]] = {}
        self._cuts: dict[tuple[int, int], None] = {}
        self._draw = random.Random(f"{seed}:network").random
        self.seed = seed
        self._salt = int.from_bytes(hashlib.sha256(f"{seed}:latency".encode()).digest()[:8], "big")

    # --- machines ---------------------------------------------------------------------------------

    def add_machine(self, *, lan: str | None = None, is_loopback_only: bool = False) -> Machine:
        """Add a computer.

        Args:
            lan: name of its local network; None: it is alone.
            is_loopback_only: it cannot reach, and cannot be reached by, any other.
        """
        self._machine_count += 1
        number = self._machine_count
        if number >= MACHINES_MAX:
            raise ValueError("the simulated network is full")
        if is_loopback_only:
            return Machine(number, LOOPBACK, f"machine {number}")
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        machine = Machine(number, address, f"machine {number}" if lan is None else f"lan {lan}")
        self.machines[address] = machine
        return machine

    def find(self, asking: Machine, host: str) -> Machine | None:
        """The machine that `host` means on `asking`."""
        machine = self.machines.get(host)
        if machine is None and host.startswith("127."):
            return asking
        return machine if machine is asking or asking.address != LOOPBACK else None

    # --- delays and faults ------------------------------------------------------------------------

    def base_delay_s(self, one: Machine, other: Machine) -> float:
        """One-way delay of a pair without jitter; the same in both directions."""
        a, b = one.number, other.number
        if a == b:
            return LOOPBACK_DELAY_S
        if a > b:
            a, b = b, a
        mixed = (a * 0x9E3779B97F4A7C15 ^ b * 0xC2B2AE3D27D4EB4F ^ self._salt) & _MASK
        mixed = (mixed ^ mixed >> 31) * 0xBF58476D1CE4E5B9 & _MASK
        quantile = mixed >> 54
        model = self.model
        if one.lan == other.lan:
            return _delays(model.lan_median_s, model.lan_sigma)[quantile]
        return _delays(model.wan_median_s, model.wan_sigma)[quantile]

    def delay_s(self, one: Machine, other: Machine) -> float:
        """One-way delay of one packet."""
        return self.base_delay_s(one, other) * (1.0 + self.model.jitter * self._draw())

    def is_lost(self, one: Machine, other: Machine) -> bool:
        """Whether the model loses this packet.  Nothing is lost inside a machine."""
        loss = self.model.datagram_loss
        return loss > 0.0 and one is not other and self._draw() < loss

    def is_cut(self, sender: Machine, receiver: Machine) -> bool:
        if sender.is_unplugged or receiver.is_unplugged:
            return True
        return bool(self._cuts) and (sender.number, receiver.number) in self._cuts

    def unplug(self, machine: Machine) -> None:
        """Let a machine sleep: datagrams to it are lost, its streams stall, nobody is told."""
        machine.is_unplugged = True

    def plug(self, machine: Machine) -> None:
        """Undo `unplug`; streams send what they held back."""
        machine.is_unplugged = False
        for stream in list(self.stalled):
            stream.resume()

    def cut(self, sender: Machine, receiver: Machine, *, both_ways: bool = True) -> None:
        """Let nothing pass between two machines until `heal`.  What is under way still arrives."""
        self._cuts[sender.number, receiver.number] = None
        if both_ways:
            self._cuts[receiver.number, sender.number] = None

    def heal(self, one: Machine | None = None, other: Machine | None = None) -> None:
        """Undo the cuts between two machines, of one machine, or all; streams send what they held back."""
        for pair in list(self._cuts):
            if (one is None or one.number in pair) and (other is None or other.number in pair):
                del self._cuts[pair]
        for stream in list(self.stalled):
            stream.resume()

    # --- datagrams --------------------------------------------------------------------------------

    def send_datagram(self, source: SimDatagrams, data: bytes, to: Address) -> None:
        """Take a datagram; drops are counted by reason."""
        counters = self.counters
        counters.datagrams_sent += 1
        sender = source.net.machine
        receiver = self.find(sender, to.host)
        if receiver is None or (source.is_loopback_only and receiver is not sender):
            counters.datagrams_unreachable += 1
        elif len(data) > UDP_BYTES_MAX:
            counters.datagrams_oversize += 1
        elif self.is_cut(sender, receiver):
            counters.datagrams_cut += 1
        elif self.is_lost(sender, receiver):
            counters.datagrams_lost += 1
        else:
            address = source.loopback_address if to.host.startswith("127.") else source.address
            self.loop.post(
                self.loop.time() + self.delay_s(sender, receiver),
                self._deliver_datagram,
                (receiver, to.port, data, address, receiver is sender),
            )

    def _deliver_datagram(self, packet: tuple[Machine, int, bytes, Address, bool]) -> None:
        machine, port, data, source, is_local = packet
        endpoint = machine.datagrams.get(port)
        is_off = machine.is_silent or machine.is_unplugged
        if endpoint is None or is_off or (endpoint.is_loopback_only and not is_local):
            self.counters.datagrams_unreachable += 1
            return
        self.loop.trace.record(self.loop.time(), endpoint.net.number, Kind.DATAGRAM, zlib.crc32(data))
        if endpoint.take(data, source):
            self.counters.datagrams_delivered += 1
        else:
            self.counters.datagrams_overflow += 1

    # --- LAN --------------------------------------------------------------------------------------

    def lan_members(self, net: SimNet) -> dict[SimNet, None]:
        """The hosts on the LAN of `net`, in the order in which they came."""
        return self._lans.setdefault(net.machine.lan, {})


class SimDatagrams:
    """A bound UDP port: the simulated `DatagramEndpoint`."""

    __slots__ = ("_is_closed", "_port", "_queue", "_waiter", "address", "is_loopback_only", "loopback_address", "net")

    def __init__(self, net: SimNet, port: int, is_loopback_only: bool) -> None:
        self.net = net
        self.is_loopback_only = is_loopback_only
        self.address = Address(net.machine.address, port)
        self.loopback_address = Address(LOOPBACK, port)
        self._port = port
        self._is_closed = False
        self._queue: deque[tuple[bytes, Address]] = deque()
        self._waiter: Future[None] | None = None

    @property
    def port(self) -> int:
        return self._port

    def send(self, data: bytes, to: Address) -> None:
        if not self._is_closed:
            self.net.network.send_datagram(self, data, to)

    def take(self, data: bytes, source: Address) -> bool:
        """Queue an arrived datagram; False when the queue is full and it was dropped."""
        if len(self._queue) >= DATAGRAM_QUEUE_MAX:
            return False
        self._queue.append((data, source))
        self._wake()
        return True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> tuple[bytes, Address]:
        while not self._queue:
            if self._is_closed:
                raise ChannelLost("the datagram endpoint is closed")
            if self._waiter is not None:
                raise LocalProtocolError("two tasks receive from one datagram endpoint")
            self._waiter = self.net.network.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._queue.popleft()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._queue.clear()
        self.net.machine.datagrams.pop(self._port, None)
        self.net.datagrams.pop(self, None)
        self._wake()


class SimNet:
    """One host's access to the network: the simulated `Net`.

    Args:
        number: of the host, for the trace.
        context: in which callbacks of the host are called, so that what they start belongs to it.
    """

    def __init__(self, network: Network, machine: Machine, number: int, context: Context) -> None:
        self.network = network
        self.machine = machine
        self.number = number
        self.context = context
        self.is_dead = False
        self.datagrams: dict[SimDatagrams, None] = {}
        self.listeners: dict[SimListener, None] = {}
        self.streams: dict[SimStream, None] = {}
        self._announcement: LanAnnouncement | None = None
        self._seen: Callable[[LanSighting], None] | None = None

    # --- Net --------------------------------------------------------------------------------------

    async def bind_datagram(self, port: int, *, loopback_only: bool) -> SimDatagrams:
        """See `Net`.

        Raises:
            ConfigError: the port is taken.
        """
        self._check_open()
        port = self.machine.take_port(port, taken=self.machine.datagrams)
        endpoint = SimDatagrams(self, port, loopback_only or self.machine.address == LOOPBACK)
        self.machine.datagrams[port] = endpoint
        self.datagrams[endpoint] = None
        return endpoint

    async def listen_stream(
        self,
        port: int,
        *,
        loopback_only: bool,
        admit: Callable[[bytes, Address], bool],
        accept: Callable[[ByteStream, bytes], None],
    ) -> SimListener:
        """See `Net`.

        Raises:
            ConfigError: the port is taken.
        """
        self._check_open()
        port = self.machine.take_port(port, taken=self.machine.listeners)
        listener = SimListener(self, port, loopback_only or self.machine.address == LOOPBACK, admit, accept)
        self.machine.listeners[port] = listener
        self.listeners[listener] = None
        return listener

    async def dial_stream(self, address: Address, preamble: bytes, *, timeout_s: float) -> SimStream:
        self._check_open()
        if len(preamble) != PREAMBLE_BYTES:
            raise LocalProtocolError(f"a preamble of {len(preamble)} bytes")
        return await Dial(self, address, preamble).wait(timeout_s)

    async def resolve(self, host: str, port: int) -> list[Address]:
        """See `Net`.  Knows literals, "localhost" and the names of the simulation's hosts."""
        if host == "localhost":
            return [Address(LOOPBACK, port)]
        machine = self.network.names.get(host)
        if machine is not None:
            return [Address(machine.address, port)]
        try:
            return [Address(str(ipaddress.ip_address(host)), port)]
        except ValueError:
            return []

    def local_addresses(self) -> list[str]:
        return [self.machine.address]

    async def announce(self, announcement: LanAnnouncement | None) -> None:
        self._check_open()
        previous, self._announcement = self._announcement, announcement
        self.network.lan_members(self)[self] = None
        if announcement is not None:
            self._tell(announcement, is_present=True)
        elif previous is not None:
            self._tell(previous, is_present=False)

    async def browse(self, seen: Callable[[LanSighting], None] | None) -> None:
        self._check_open()
        self._seen = seen
        members = self.network.lan_members(self)
        members[self] = None
        if seen is None:
            return
        for other in members:
            if other is not self and other._announcement is not None:
                self._notice(other, other._announcement, is_present=True)

    async def close(self) -> None:
        if self.is_dead:
            return
        if self._announcement is not None:
            await self.announce(None)
        self._leave()
        for stream in list(self.streams):
            stream.close()
        self.is_dead = True

    # --- faults -----------------------------------------------------------------------------------

    def kill(self, *, is_silent: bool) -> None:
        """End everything at once, as when the process is killed (others are told by resets) or, `is_silent`,
        when the machine loses power (others are told nothing)."""
        if self.is_dead:
            return
        self.is_dead = True
        if is_silent:
            self.machine.is_silent = True
        announcement = self._announcement
        self._leave()
        if announcement is not None:
            self._tell(announcement, is_present=False, after_s=LAN_EXPIRY_S)
        for stream in list(self.streams):
            stream.die(is_silent=is_silent)
        self.streams.clear()

    def _leave(self) -> None:
        for endpoint in list(self.datagrams):
            endpoint.close()
        for listener in list(self.listeners):
            listener.stop()
        self.network.lan_members(self).pop(self, None)
        self._seen = self._announcement = None

    def _check_open(self) -> None:
        if self.is_dead:
            raise ChannelLost("the host's network is closed")

    # --- LAN --------------------------------------------------------------------------------------

    def _tell(self, announcement: LanAnnouncement, *, is_present: bool, after_s: float = LAN_NOTICE_S) -> None:
        for other in self.network.lan_members(self):
            if other is not self and other._seen is not None:
                other._notice(self, announcement, is_present=is_present, after_s=after_s)

    def _notice(
        self, other: SimNet, announcement: LanAnnouncement, *, is_present: bool, after_s: float = LAN_NOTICE_S
    ) -> None:
        if self.network.is_cut(other.machine, self.machine):
            return
        addresses = (LOOPBACK,) if other.machine is self.machine else (other.machine.address,)
        sighting = LanSighting(announcement=announcement, addresses=addresses, is_present=is_present)
        network = self.network
        network.loop.post(
            network.loop.time() + after_s + network.delay_s(other.machine, self.machine), self._sight, sighting
        )

    def _sight(self, sighting: LanSighting) -> None:
        if self._seen is None or self.is_dead or self.machine.is_unplugged:
            return
        loop = self.network.loop
        digest = zlib.crc32(sighting.announcement.public_key) ^ sighting.is_present
        loop.trace.record(loop.time(), self.number, Kind.LAN, digest)
        self.context.run(self._seen, sighting)
