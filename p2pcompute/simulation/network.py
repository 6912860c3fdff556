"""The simulated network: what lies between machines.

A `Machine` (machines.py) has one address and the ports of all hosts on it.  What hosts do here is built on top: a
`SimNet` (access.py) is one host's access to the network; streams are in streams.py.  `NetworkSettings` say what the
network does to packets: delays come from latency.py, bursts of loss, access lines and partitions from paths.py, address
translation from nat.py.

Packets are passed by reference.  Random draws come from one stream per purpose.  What the settings leave out costs
nothing: which way a datagram is sent is chosen when they are applied.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Final, Literal

import msgspec

from p2pcompute.errors import DnsError
from p2pcompute.host.interfaces import Address, DnsAnswer, DnsKind
from p2pcompute.limits import KIB
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
from p2pcompute.simulation.machines import LOOPBACK, Endpoint, Machine, Plug, StreamEnd
from p2pcompute.simulation.nat import Homes, Nat, NatKind, NatSettings
from p2pcompute.simulation.paths import BurstLoss, Line, Partition
from p2pcompute.simulation.trace import Kind

LOOPBACK_DELAY_S: Final = 30e-6
UDP_BYTES_MAX: Final = 65_507
"""What fits an IPv4 packet.  A real network takes it in fragments, so that receivers must refuse it themselves."""
UDP_HEADER_BYTES: Final = 28
"""IPv4 and UDP, which access lines carry too."""
MACHINES_MAX: Final = 1 << 24

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Chance = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
Seconds = Annotated[float, msgspec.Meta(gt=0.0)]


class NetworkSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lies between machines.  Delays are one-way, in seconds."""

    latency: Annotated[
        str,
        msgspec.Meta(description="lan, lognormal, king, meridian, regions (assumed), or the path of a .syscoord file"),
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
    handling_s: Annotated[
        float,
        msgspec.Meta(
            ge=0.0,
            le=1.0,
            description="processor time of a machine for a datagram and what it says in return: one after the other",
        ),
    ] = 0.0
    handshake_s: Annotated[
        float, msgspec.Meta(ge=0.0, le=1.0, description="likewise, of either end for the handshake of a stream")
    ] = 0.0
    shared_cores: Annotated[
        int, msgspec.Meta(ge=0, le=1024, description="cores that all machines share for this; 0: each has its own")
    ] = 0
    loss: Annotated[Chance, msgspec.Meta(description="probability that a packet between two machines is lost")] = 0.0
    burst_share: Annotated[Chance, msgspec.Meta(description="share of the time in which a path loses in bursts")] = 0.0
    burst_s: Annotated[Seconds, msgspec.Meta(description="mean length of a burst")] = 1.0
    burst_loss: Annotated[Share, msgspec.Meta(description="probability that a packet is lost in a burst")] = 0.5
    burst_of: Annotated[
        Literal["path", "line"],
        msgspec.Meta(description="a burst is on one directed path, or on the line of the sender, to everybody at once"),
    ] = "path"
    duplicate: Annotated[Chance, msgspec.Meta(description="probability that a datagram arrives twice")] = 0.0
    reorder: Annotated[Chance, msgspec.Meta(description="probability that a datagram is held up on the way")] = 0.0
    reorder_s: Annotated[Seconds, msgspec.Meta(description="at most for this long")] = 0.1
    up_bytes_per_s: Annotated[
        float, msgspec.Meta(ge=0.0, description="speed of a machine's access line towards others; 0: unlimited")
    ] = 0.0
    down_bytes_per_s: Annotated[
        float, msgspec.Meta(ge=0.0, description="speed of a machine's access line from others; 0: unlimited")
    ] = 0.0
    queue_bytes: Annotated[
        int,
        msgspec.Meta(ge=2 * KIB, description="queue of an access line each way; what has no room is lost"),
    ] = 256 * KIB
    nat: Annotated[
        NatSettings, msgspec.Meta(description="address translation of machines that are added from now on")
    ] = msgspec.field(default_factory=NatSettings)
    keepalive_s: Annotated[
        Seconds, msgspec.Meta(description="a stream breaks when its peer could not be heard for so long")
    ] = 60.0

    def __post_init__(self) -> None:
        if self.latency not in LATENCIES and not self.latency.endswith(COORDINATES_SUFFIX):
            raise ValueError(
                f"there is no `latency` model {self.latency!r}: choose {', '.join(LATENCIES)}, "
                f"or the path of a {COORDINATES_SUFFIX} file"
            )


def _latency_model(settings: NetworkSettings) -> LatencyModel:
    if settings.latency == "lan":
        return Lognormal(settings.lan_median_s, settings.lan_sigma)
    return latency_model(settings.latency, median_s=settings.median_s, sigma=settings.sigma, noise=settings.noise)


_LATENCY_OF: Final = attrgetter("latency", "median_s", "sigma", "noise", "lan_median_s", "lan_sigma")
_BURSTS_OF: Final = attrgetter("burst_share", "burst_s", "burst_loss", "burst_of")
_LINES_OF: Final = attrgetter("up_bytes_per_s", "down_bytes_per_s", "queue_bytes")
"""What the models that keep something are made of: they are made anew only when one of these changes."""


@dataclass(slots=True)
class NetworkCounters:
    """Of the whole network, by reason."""

    bytes_sent: int = 0
    """Of datagrams and streams, without what carries them."""
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
    datagrams_filtered: int = 0
    """A Nat did not let them in."""
    datagrams_line_full: int = 0
    """An access line had no room for them."""
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
        """Those that are behind no Nat, by their 10.x.y.z address."""
        self.names: dict[str, Machine] = {}
        self.zone: dict[tuple[str, DnsKind], DnsAnswer | DnsError] = {}
        """What the simulated DNS says beside the names of hosts."""
        self.stalled: dict[StreamEnd, None] = {}
        """Streams whose peer cannot be heard."""
        self.has_loss = False
        self.is_plain = False
        """There is nothing but delay on the way from one machine to another, unless one of them is unplugged."""
        self.draw_loss = random.Random(f"{seed}:loss").random
        self._draw_jitter = random.Random(f"{seed}:jitter").random
        self._draw_odd = random.Random(f"{seed}:odd").random
        """For what happens to some datagrams: duplicates and hold-ups."""
        self._all: list[Machine] = []
        self._address_count = 0
        self.address_step = 256 if any(share for _, share in settings.nat.shares()) else 1  # homes are far apart
        """Between the addresses of two homes; 256: each is in a /24 of its own."""
        self._lans: dict[str, dict[Plug, None]] = {}
        self._homes: Homes[Machine] = Homes(seed, self._new_address)
        self._cuts: dict[tuple[int, int], None] = {}
        self._partitions: dict[Partition, None] = {}
        self._own_lines: dict[int, tuple[float, float]] = {}
        """By number of the machine: bytes per second up and down that `set_line` gave it."""
        self._settings: NetworkSettings | None = None
        self._places: LatencyModel
        self._bursts: BurstLoss | None = None
        self.send_datagram: Callable[[Endpoint, bytes, Address], None]
        self.apply(settings)

    # --- the model --------------------------------------------------------------------------------

    def apply(self, settings: NetworkSettings) -> None:
        """Let the model be this one from now on; what is under way arrives as it was sent.

        Raises:
            UsageError: the file of coordinates cannot be read; nothing was changed.
        """
        previous = self._settings
        if previous is None or _LATENCY_OF(previous) != _LATENCY_OF(settings):
            self._places = _latency_model(settings)
            for machine in self._all:
                machine.spot = self._place(machine.number, machine.lan)
        if previous is None or _BURSTS_OF(previous) != _BURSTS_OF(settings):
            share, burst_s, loss, _ = _BURSTS_OF(settings)
            self._bursts = BurstLoss(share, burst_s, loss, self.draw_loss) if share > 0.0 and loss > 0.0 else None
        self._settings = settings
        if previous is None or _LINES_OF(previous) != _LINES_OF(settings):
            for machine in self._all:
                self._fit_lines(machine)
        self._lan_delays_s = lognormal_quantiles(settings.lan_median_s, settings.lan_sigma)
        self._jitter = settings.jitter
        self._handling_s = settings.handling_s
        self._cores_free_at = [0.0] * settings.shared_cores
        self._arrive = self._queue_datagram if settings.handling_s > 0.0 else self._deliver_datagram
        self._loss = settings.loss
        self._is_burst_of_path = settings.burst_of == "path"
        self.has_loss = settings.loss > 0.0 or self._bursts is not None
        self._choose()

    @property
    def settings(self) -> NetworkSettings:
        """The model as it is now."""
        assert self._settings is not None
        return self._settings

    def _choose(self) -> None:
        """Choose the way of datagrams."""
        settings = self.settings
        is_odd = settings.duplicate > 0.0 or settings.reorder > 0.0 or settings.handling_s > 0.0
        is_clear = not (self.has_loss or self._cuts or self._partitions or self._homes.gates)
        has_lines = settings.up_bytes_per_s > 0.0 or settings.down_bytes_per_s > 0.0 or bool(self._own_lines)
        self.is_plain = is_clear and not (is_odd or has_lines)
        self.send_datagram = self._send_plainly if self.is_plain else self._send_modelled

    def _place(self, number: int, lan: str) -> Spot:
        """Where a machine is: at the place of its LAN."""
        key = draw_key(random.Random(f"{self.seed}:machine:{number}"))
        return self._places.place(random.Random(f"{self.seed}:place:{lan}"), key)

    def set_line(self, machine: Machine, *, up_bytes_per_s: float, down_bytes_per_s: float) -> None:
        """Give a machine an access line of its own, whatever the settings say.  0: unlimited."""
        self._own_lines[machine.number] = (up_bytes_per_s, down_bytes_per_s)
        self._fit_lines(machine)
        self._choose()

    def unset_line(self, machine: Machine) -> None:
        """Undo `set_line`."""
        self._own_lines.pop(machine.number, None)
        self._fit_lines(machine)
        self._choose()

    def _fit_lines(self, machine: Machine) -> None:
        settings = self.settings
        default = (settings.up_bytes_per_s, settings.down_bytes_per_s)
        up, down = self._own_lines.get(machine.number, default)
        machine.up = self._line(machine.up, up)
        machine.down = self._line(machine.down, down)

    def _line(self, line: Line | None, bytes_per_s: float) -> Line | None:
        if bytes_per_s <= 0.0:
            return None
        if line is None:
            return Line(self.loop, bytes_per_s, self.settings.queue_bytes)
        line.change(bytes_per_s, self.settings.queue_bytes)
        return line

    # --- machines ---------------------------------------------------------------------------------

    def add_machine(
        self, *, lan: str | None = None, is_loopback_only: bool = False, nat: NatKind | None = None
    ) -> Machine:
        """Add a computer.

        Args:
            lan: name of its local network; None: it is alone.
            is_loopback_only: it cannot reach, and cannot be reached by, any other.
            nat: the kind that its home is behind, if it is the first there; None: as the settings' shares will.
        """
        number = len(self._all) + 1
        if number >= MACHINES_MAX:
            raise ValueError("the simulated network is full")
        home_name = f"machine {number}" if lan is None else f"lan {lan}"
        spot = self._place(number, home_name)
        if is_loopback_only:
            machine = Machine(number, LOOPBACK, home_name, spot)
        elif (home := self._homes.home(home_name, self.settings.nat, nat)) is not None:
            machine = Machine(number, home.new_address(), home_name, spot, home)
            home.behind[machine.address] = machine
            self._choose()
        else:
            machine = Machine(number, self._new_address(), home_name, spot)
            self.machines[machine.address] = machine
        self._all.append(machine)
        self._fit_lines(machine)
        return machine

    @property
    def has_homes(self) -> bool:
        """Whether anybody is behind a Nat."""
        return bool(self._homes.gates)

    def _new_address(self) -> str:
        self._address_count += self.address_step
        count = self._address_count
        return f"10.{count >> 16 & 255}.{count >> 8 & 255}.{count & 255}"

    def find(self, asking: Machine, host: str) -> Machine | None:
        """The machine that `host` means on `asking`; None for one behind a Nat of others."""
        machine = self.machines.get(host)
        if machine is not None:
            return machine if machine is asking or asking.address != LOOPBACK else None
        if host.startswith("127."):
            return asking
        behind = None if asking.nat is None else asking.nat.behind.get(host)
        return behind if isinstance(behind, Machine) else None

    # --- delay and loss ---------------------------------------------------------------------------

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

    def loss(self, sender: Machine, receiver: Machine, at: float) -> float:
        """Probability that a packet is lost.  Nothing is lost inside a machine."""
        if sender is receiver:
            return 0.0
        loss = self._loss
        if self._bursts is not None:
            path = sender.number * MACHINES_MAX + receiver.number if self._is_burst_of_path else sender.number
            burst = self._bursts.loss(path, at)
            loss += burst - loss * burst
        return loss

    # --- cuts -------------------------------------------------------------------------------------

    def is_cut(self, sender: Machine, receiver: Machine) -> bool:
        if sender.is_unplugged or receiver.is_unplugged:
            return True
        return bool(self._cuts or self._partitions) and self._separates(sender, receiver)

    def _separates(self, sender: Machine, receiver: Machine) -> bool:
        if (sender.number, receiver.number) in self._cuts:
            return True
        return any(partition.cuts(sender.number, receiver.number) for partition in self._partitions)

    def unplug(self, machine: Machine) -> None:
        """Let a machine sleep: datagrams to it are lost, its streams stall, nobody is told."""
        machine.is_unplugged = True
        for stream in list(machine.streams()):
            stream.suspect_both()

    def plug(self, machine: Machine) -> None:
        """Undo `unplug`; streams send what they held back."""
        machine.is_unplugged = False
        self._resume()

    def cut(self, sender: Machine, receiver: Machine, *, both_ways: bool = True) -> None:
        """Let nothing pass between two machines until `heal`.  What is under way still arrives."""
        self._cuts[sender.number, receiver.number] = None
        if both_ways:
            self._cuts[receiver.number, sender.number] = None
        self._choose()
        for machine in (sender, receiver):
            for stream in list(machine.streams()):
                stream.suspect()

    def heal(self, one: Machine | None = None, other: Machine | None = None) -> None:
        """Undo the cuts between two machines, of one machine, or all, and then also the partitions; streams send
        what they held back."""
        for pair in list(self._cuts):
            if (one is None or one.number in pair) and (other is None or other.number in pair):
                del self._cuts[pair]
        if one is None and other is None:
            self._partitions.clear()
        self._choose()
        self._resume()

    def part(self, *groups: Iterable[Machine], is_one_way: bool = False) -> Partition:
        """Let nothing pass between groups of machines until `join`, at a cost per machine and not per pair.
        Several partitions may hold at the same time.

        Args:
            groups: machines in none of them reach all.
            is_one_way: packets from a later group to an earlier one pass.
        """
        members = [list(group) for group in groups]
        numbers = [[machine.number for machine in group] for group in members]
        partition = Partition(numbers, is_one_way=is_one_way)
        self._partitions[partition] = None
        self._choose()
        for group in members:
            for machine in group:
                for stream in list(machine.streams()):
                    stream.suspect()
        return partition

    def join(self, partition: Partition) -> None:
        """Undo a partition, if it still holds; streams send what they held back."""
        self._partitions.pop(partition, None)
        self._choose()
        self._resume()

    def _resume(self) -> None:
        for stream in list(self.stalled):
            stream.resume()

    # --- other addresses --------------------------------------------------------------------------

    def move(self, machine: Machine) -> str:
        """Give a machine, with its home when that is behind a Nat, another public address (behind a carrier: other
        ports of it).  Its streams to others hang until they break; datagrams to the old address vanish.

        Returns:
            The new public address.
        """
        if machine.nat is not None:
            self.rebind(machine)
            self._homes.move(machine.nat)
            return machine.public_address
        if self.machines.pop(machine.address, None) is None:
            raise ValueError(f"machine {machine.number} has only loopback")
        machine.renumber(self._new_address())
        self.machines[machine.address] = machine
        for stream in list(machine.streams()):
            if stream.there is not machine:
                stream.detach()
        return machine.address

    def rebind(self, machine: Machine) -> bool:
        """Let the Nat of a machine's home lose its mappings, as when the router restarts: others see new ports, and
        streams through it hang until they break.

        Returns:
            False when there is no Nat.
        """
        nat = machine.nat
        if nat is None:
            return False
        nat.forget()
        for inside in nat.behind.values():
            if isinstance(inside, Machine):
                for stream in list(inside.streams()):
                    if stream.there.lan != inside.lan:
                        stream.detach()
        return True

    # --- datagrams --------------------------------------------------------------------------------

    def _admits(self, sender: Machine, source: Endpoint, receiver: Machine, data: bytes) -> bool:
        """Whether a datagram gets on its way; drops are counted by reason."""
        counters = self.counters
        if source.is_loopback_only and receiver is not sender:
            counters.datagrams_unreachable += 1
        elif len(data) > UDP_BYTES_MAX:
            counters.datagrams_oversize += 1
        elif (self._cuts or self._partitions) and self._separates(sender, receiver):
            counters.datagrams_cut += 1
        elif self.has_loss and self.draw_loss() < self.loss(sender, receiver, self.loop.time()):
            counters.datagrams_lost += 1
        else:
            return True
        return False

    def _send_plainly(self, source: Endpoint, data: bytes, to: Address) -> None:
        """Take a datagram while there is nothing but delay: most of what a simulation does, so every call counts."""
        sender = source.net.machine
        receiver = self.machines.get(to.host)
        if receiver is None or receiver is sender or source.is_loopback_only or len(data) > UDP_BYTES_MAX:
            self._send_modelled(source, data, to)
            return
        counters = self.counters
        counters.datagrams_sent += 1
        counters.bytes_sent += len(data)
        if sender.lan == receiver.lan:
            delay_s = self._lan_delays_s[pair_hash(sender.spot, receiver.spot)]
        else:
            delay_s = self._places.delay_s(sender.spot, receiver.spot)
        self.loop.post(
            self.loop.time() + delay_s * (1.0 + self._jitter * self._draw_jitter()),
            self._deliver_datagram,
            (receiver, to.port, data, source.address, False),
        )

    def _send_modelled(self, source: Endpoint, data: bytes, to: Address) -> None:
        """Take a datagram, with all that the model has."""
        counters = self.counters
        counters.datagrams_sent += 1
        counters.bytes_sent += len(data)
        sender, host, now = source.net.machine, to.host, self.loop.time()
        receiver = self.find(sender, host)
        address = source.loopback_address if host.startswith("127.") else source.address
        if sender.nat is not None and (receiver is None or receiver.lan != sender.lan):
            address = sender.nat.outbound(source.address, to, now)
        gate = None
        if receiver is None:
            gate = self._homes.gates.get(host)
            if gate is None:
                counters.datagrams_unreachable += 1
                return
            is_hairpin = sender.nat is not None and sender.nat.public is gate
            receiver = None if is_hairpin else gate.locate(to.port)
            if receiver is None:
                counters.datagrams_filtered += 1
                return
        if not self._admits(sender, source, receiver, data):
            return
        if receiver is sender:
            packet = (receiver, to.port, data, address, True)
            self.loop.post(now + self.delay_s(sender, receiver), self._deliver_datagram, packet)
            return
        size, left = len(data) + UDP_HEADER_BYTES, now
        if sender.up is not None:
            through = sender.up.take(size)
            if through is None:
                counters.datagrams_line_full += 1
                return
            left = through
        arrive: Callable[[Any], None] = self._arrive
        arrival: Any = (receiver, to.port, data, address, False)
        if gate is not None:
            arrive, arrival = self._pass_gate, (gate, to.port, data, address)
        if receiver.down is not None:
            arrive, arrival = self._pass_line, (receiver.down, size, arrive, arrival)
        settings, draw = self.settings, self._draw_odd
        copies = 1
        if settings.duplicate > 0.0 and draw() < settings.duplicate:
            counters.datagrams_duplicated += 1
            copies = 2
        for _ in range(copies):
            at = left + self.delay_s(sender, receiver)
            if settings.reorder > 0.0 and draw() < settings.reorder:
                counters.datagrams_held_up += 1
                at += settings.reorder_s * draw()
            self.loop.post(at, arrive, arrival)

    def _pass_line(self, packet: tuple[Line, int, Callable[[Any], None], Any]) -> None:
        """At the far end of the receiver's access line."""
        line, size, arrive, arrival = packet
        through = line.take(size)
        if through is None:
            self.counters.datagrams_line_full += 1
        else:
            self.loop.post(through, arrive, arrival)

    def _pass_gate(self, packet: tuple[Nat[Machine], int, bytes, Address]) -> None:
        """At the receiver's Nat."""
        gate, port, data, source = packet
        inside = gate.inbound(port, source, self.loop.time())
        if inside is None:
            self.counters.datagrams_filtered += 1
        else:
            machine, port = inside
            self._arrive((machine, port, data, source, False))

    def _queue_datagram(self, packet: tuple[Machine, int, bytes, Address, bool]) -> None:
        self.loop.post(self.occupy(packet[0], self._handling_s), self._deliver_datagram, packet)

    def occupy(self, machine: Machine, duration_s: float) -> float:
        """Give a machine something to do that takes it so long: when it is done with that and with what came before.

        A machine does one thing after the other, as its node's event loop does; shared cores go to whoever asks first.
        """
        cores = self._cores_free_at
        begin_s = max(machine.free_at, self.loop.time(), cores[0] if cores else 0.0)
        machine.free_at = begin_s + duration_s
        if cores:
            heapq.heapreplace(cores, machine.free_at)
        return machine.free_at

    def _deliver_datagram(self, packet: tuple[Machine, int, bytes, Address, bool]) -> None:
        machine, port, data, source, is_local = packet
        endpoint = machine.datagrams.get(port)
        is_off = machine.is_silent or machine.is_unplugged
        if endpoint is None or is_off or (endpoint.is_loopback_only and not is_local):
            self.counters.datagrams_unreachable += 1
            return
        loop = self.loop
        loop.trace.record(loop.time(), endpoint.net.number, Kind.DATAGRAM, zlib.crc32(data))
        if endpoint.take(data, source):
            self.counters.datagrams_delivered += 1
        else:
            self.counters.datagrams_overflow += 1

    # --- LAN --------------------------------------------------------------------------------------

    def lan_members(self, net: Plug) -> dict[Plug, None]:
        """The hosts on the LAN of `net`, in the order in which they came."""
        return self._lans.setdefault(net.machine.lan, {})
