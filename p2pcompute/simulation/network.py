"""The simulated network: machines, datagrams, LAN announcements, faults.

A `Machine` has one address (10.x.y.z, or loopback only) and the ports of all hosts on it; a `SimNet` is one
host's access, the simulated `host.interfaces.Net`.  Streams are in `streams`.

`NetworkSettings` say what the network does to packets; delays come from `latency`, bursts of loss from `paths`.
Packets are passed by reference.  Random draws come from one stream per purpose.
"""

from __future__ import annotations

import ipaddress
import random
import zlib
from asyncio import Future
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Final, Literal

import msgspec

from p2pcompute.errors import ChannelLost, ConfigError, LocalProtocolError
from p2pcompute.host.interfaces import Address, ByteStream, LanAnnouncement, LanSighting
from p2pcompute.limits import DATAGRAM_QUEUE_MAX, PREAMBLE_BYTES
from p2pcompute.simulation.latency import (
    COORDINATES_SUFFIX,
    LATENCIES,
    LatencyModel,
    Lognormal,
    Spot,
    draw_key,
    latency_model,
    lognormal_quantiles,
    pair_hash,
)
from p2pcompute.simulation.loop import SimulationLoop
from p2pcompute.simulation.paths import BurstLoss
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


Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Chance = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
Seconds = Annotated[float, msgspec.Meta(gt=0.0)]


class NetworkSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lies between machines.  Delays are one-way, in seconds."""

    latency: Annotated[
        str, msgspec.Meta(description="lan, lognormal, king, meridian, regions, or the path of a .syscoord file")
    ] = "lognormal"
    median_s: Annotated[Seconds, msgspec.Meta(description="median delay of lognormal")] = 0.035
    sigma: Annotated[
        float,
        msgspec.Meta(ge=0.0, le=3.0, description="spread of lognormal; 0.6: 90 % within 13 to 94 ms"),
    ] = 0.6
    noise: Annotated[
        float,
        msgspec.Meta(
            ge=0.0,
            le=1.0,
            description="log-normal noise of each pair in king, meridian, regions and files; "
            "with 0.04, about 6 % of the triples violate the triangle inequality, as on PlanetLab",
        ),
    ] = 0.04
    lan_median_s: Annotated[Seconds, msgspec.Meta(description="median delay of machines on one LAN")] = 0.0004
    lan_sigma: Annotated[float, msgspec.Meta(ge=0.0, le=3.0, description="its spread")] = 0.3
    jitter: Annotated[
        float,
        msgspec.Meta(ge=0.0, le=100.0, description="a packet takes up to this fraction longer than its pair"),
    ] = 0.2
    loss: Annotated[Chance, msgspec.Meta(description="probability that a packet between two machines is lost")] = 0.0
    burst_share: Annotated[Chance, msgspec.Meta(description="share of the time in which a path loses in bursts")] = 0.0
    burst_s: Annotated[Seconds, msgspec.Meta(description="mean length of a burst")] = 1.0
    burst_loss: Annotated[Chance, msgspec.Meta(description="probability that a packet is lost in a burst")] = 0.5
    burst_of: Annotated[
        Literal["path", "line"],
        msgspec.Meta(description="a burst is on one directed path, or on the line of the sender, to everybody at once"),
    ] = "path"
    duplicate: Annotated[Chance, msgspec.Meta(description="probability that a datagram arrives twice")] = 0.0
    reorder: Annotated[Chance, msgspec.Meta(description="probability that a datagram is held up on the way")] = 0.0
    reorder_s: Annotated[Seconds, msgspec.Meta(description="at most for this long")] = 0.1

    def __post_init__(self) -> None:
        if self.latency not in LATENCIES and not self.latency.endswith(COORDINATES_SUFFIX):
            raise ValueError(
                f"there is no latency model {self.latency!r}: choose {', '.join(LATENCIES)}, "
                f"or the path of a {COORDINATES_SUFFIX} file"
            )


def _latency_model(settings: NetworkSettings) -> LatencyModel:
    if settings.latency == "lan":
        return Lognormal(settings.lan_median_s, settings.lan_sigma)
    return latency_model(settings.latency, median_s=settings.median_s, sigma=settings.sigma, noise=settings.noise)


_LATENCY_OF: Final = attrgetter("latency", "median_s", "sigma", "noise", "lan_median_s", "lan_sigma")
_BURSTS_OF: Final = attrgetter("burst_share", "burst_s", "burst_loss", "burst_of")
"""What the models that keep something are made of: they are made anew only when one of these changes."""


class Machine:
    """A computer: an address and the ports of all hosts on it."""

    __slots__ = (
        "_next_port", "address", "datagrams", "is_silent", "is_unplugged", "lan", "listeners", "number", "spot",
    )  # fmt: skip

    def __init__(self, number: int, address: str, lan: str, spot: Spot) -> None:
        self.number = number
        self.address = address
        """10.x.y.z, or 127.0.0.1 for a machine that has only loopback."""
        self.lan = lan
        """Machines on one LAN are at one place."""
        self.spot = spot
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
    datagrams_duplicated: int = 0
    datagrams_held_up: int = 0
    """Sent on late, so that others overtook them."""
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
        seed: fixes places, jitter and loss.
        settings: see `apply`.
    """

    def __init__(self, loop: SimulationLoop, seed: str, settings: NetworkSettings) -> None:
        self.loop = loop
        self.seed = seed
        self.counters = NetworkCounters()
        self.machines: dict[str, Machine] = {}
        """By their 10.x.y.z address."""
        self.names: dict[str, Machine] = {}
        self.stalled: dict[SimStream, None] = {}
        """Streams that hold pieces back because of a cut."""
        self._machine_count = 0
        self._lans: dict[str, dict[SimNet, None]] = {}
        self._cuts: dict[tuple[int, int], None] = {}
        self._draw_jitter = random.Random(f"{seed}:jitter").random
        self._draw_loss = random.Random(f"{seed}:loss").random
        self._draw_odd = random.Random(f"{seed}:odd").random
        """For what happens to some datagrams: duplicates and hold-ups."""
        self._settings: NetworkSettings | None = None
        self._places: LatencyModel
        self._bursts: BurstLoss | None = None
        self.send_datagram: Callable[[SimDatagrams, bytes, Address], None]
        self.apply(settings)

    # --- the model --------------------------------------------------------------------------------

    def apply(self, settings: NetworkSettings) -> None:
        """Let the model be this one from now on; what is under way arrives as it was sent.

        What is off costs nothing: what a packet goes through is chosen here.

        Raises:
            UsageError: the file of coordinates cannot be read; nothing was changed.
        """
        if self._settings is None or _LATENCY_OF(self._settings) != _LATENCY_OF(settings):
            self._places = _latency_model(settings)
            for machine in self.machines.values():
                machine.spot = self._place(machine.number, machine.lan)
        if self._settings is None or _BURSTS_OF(self._settings) != _BURSTS_OF(settings):
            share, burst_s, loss, _ = _BURSTS_OF(settings)
            self._bursts = BurstLoss(share, burst_s, loss, self._draw_loss) if share > 0.0 and loss > 0.0 else None
        self._settings = settings
        self._lan_delays_s = lognormal_quantiles(settings.lan_median_s, settings.lan_sigma)
        self._jitter = settings.jitter
        self._loss = settings.loss
        self._is_burst_of_path = settings.burst_of == "path"
        self._has_loss = settings.loss > 0.0 or self._bursts is not None
        is_plain = settings.duplicate == settings.reorder == 0.0
        self.send_datagram = self._send_plainly if is_plain else self._send_oddly

    @property
    def settings(self) -> NetworkSettings:
        """The model as it is now."""
        assert self._settings is not None
        return self._settings

    def _place(self, number: int, lan: str) -> Spot:
        """Where a machine is: at the place of its LAN."""
        key = draw_key(random.Random(f"{self.seed}:machine:{number}"))
        return self._places.place(random.Random(f"{self.seed}:place:{lan}"), key)

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
        lan = f"machine {number}" if lan is None else f"lan {lan}"
        if is_loopback_only:
            return Machine(number, LOOPBACK, lan, self._place(number, lan))
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        machine = Machine(number, address, lan, self._place(number, lan))
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
        if one is other:
            return LOOPBACK_DELAY_S
        if one.lan == other.lan:
            return self._lan_delays_s[pair_hash(one.spot, other.spot)]
        return self._places.delay_s(one.spot, other.spot)

    def delay_s(self, one: Machine, other: Machine) -> float:
        """One-way delay of one packet."""
        return self.base_delay_s(one, other) * (1.0 + self._jitter * self._draw_jitter())

    def is_lost(self, sender: Machine, receiver: Machine) -> bool:
        """Whether the model loses this packet.  Nothing is lost inside a machine."""
        if not self._has_loss or sender is receiver:
            return False
        if self._draw_loss() < self._loss:
            return True
        if self._bursts is None:
            return False
        path = sender.number
        if self._is_burst_of_path:
            path = path * MACHINES_MAX + receiver.number
        return self._bursts.is_lost(path, self.loop.time())

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

    def _admit(self, source: SimDatagrams, data: bytes, to: Address) -> Machine | None:
        """The receiver of a datagram that gets on its way; drops are counted by reason."""
        counters = self.counters
        counters.datagrams_sent += 1
        sender = source.net.machine
        receiver = self.machines.get(to.host) or self.find(sender, to.host)
        if receiver is None or (source.is_loopback_only and receiver is not sender):
            counters.datagrams_unreachable += 1
        elif len(data) > UDP_BYTES_MAX:
            counters.datagrams_oversize += 1
        elif self._cuts and (sender.number, receiver.number) in self._cuts:
            counters.datagrams_cut += 1
        elif self._has_loss and self.is_lost(sender, receiver):
            counters.datagrams_lost += 1
        else:
            return receiver
        return None

    def _send_plainly(self, source: SimDatagrams, data: bytes, to: Address) -> None:
        """Take a datagram, with nothing but delay and loss."""
        sender = source.net.machine
        receiver = self._admit(source, data, to)
        if receiver is not None:
            address = source.loopback_address if to.host.startswith("127.") else source.address
            self.loop.post(
                self.loop.time() + self.delay_s(sender, receiver),
                self._deliver_datagram,
                (receiver, to.port, data, address, receiver is sender),
            )

    def _send_oddly(self, source: SimDatagrams, data: bytes, to: Address) -> None:
        """Take a datagram, with all that the model has."""
        sender = source.net.machine
        receiver = self._admit(source, data, to)
        if receiver is None:
            return
        settings, draw = self.settings, self._draw_odd
        address = source.loopback_address if to.host.startswith("127.") else source.address
        packet = (receiver, to.port, data, address, receiver is sender)
        copies = 1
        if receiver is not sender and draw() < settings.duplicate:
            self.counters.datagrams_duplicated += 1
            copies = 2
        for _ in range(copies):
            at = self.loop.time() + self.delay_s(sender, receiver)
            if receiver is not sender and draw() < settings.reorder:
                self.counters.datagrams_held_up += 1
                at += settings.reorder_s * draw()
            self.loop.post(at, self._deliver_datagram, packet)

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
