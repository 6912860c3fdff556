"""Simulated byte streams: what TCP and TLS do, seen from above.

Bytes are never lost, doubled or reordered; a lost piece arrives late, after timeouts that double.  At most
STREAM_WINDOW_BYTES are under way or unread at the receiver; the rest waits at the sender (`unsent_bytes`).  Access
lines take pieces of all streams in turn.  Across a cut, pieces are held back, and sent in order at the first
retransmission after it heals.  An end breaks when it could not hear from its peer for `keepalive_s`: cut off in either
direction, asleep, without power, at another address.  As under TLS there is no half close: who has closed, or has seen
the other's end, sends no more.

Deviations: no slow start and no congestion window; acknowledgements take no bandwidth.
Source: RFC 6298 (timeouts), RFC 5681 3.2 (fast retransmit), RFC 1122 4.2.3.6 (keepalive).
"""

from __future__ import annotations

import zlib
from asyncio import Future
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from p2pcompute.errors import ChannelLost, LocalProtocolError
from p2pcompute.host.interfaces import Address
from p2pcompute.limits import KIB
from p2pcompute.simulation.machines import Machine, Plug
from p2pcompute.simulation.network import Network
from p2pcompute.simulation.paths import PIECE_BYTES
from p2pcompute.simulation.trace import Kind

STREAM_WINDOW_BYTES: Final = 256 * KIB
"""Sent but not yet read by the receiver: about a TCP window of today."""
WRITE_HIGH_BYTES: Final = 64 * KIB
"""`drain` waits above this much unsent, until it is below WRITE_LOW_BYTES; asyncio's own values."""
WRITE_LOW_BYTES: Final = 16 * KIB
RETRANSMIT_S: Final = 0.2
"""Timeout of a lost piece, beyond the round trip: the least on Linux.  Doubled each time."""
RETRANSMIT_S_MAX: Final = 120.0
FAST_RETRANSMIT_PACKETS: Final = 4
"""From so many packets on, three acknowledgements tell of a loss within a round trip."""
SEGMENT_BYTES: Final = 1400
SEGMENT_HEADER_BYTES: Final = 60
"""IPv4, TCP with timestamps, and a share of TLS."""

_Arrival = tuple[Callable[[Any], None], Any, int]
"""What happens at the peer, its argument, and how many bytes of the stream it carries."""


def retransmission_s(
    network: Network, sender: Machine, receiver: Machine, size: int, *, timeout_s: float = RETRANSMIT_S
) -> float:
    """How much later `size` bytes arrive because packets of them are lost, in virtual seconds.

    Args:
        timeout_s: the first timeout, beyond the round trip.
    """
    if not network.has_loss or sender is receiver:
        return 0.0
    late_s, limit_s, now = 0.0, network.settings.keepalive_s, network.loop.time()
    rtt_s = 2.0 * network.base_delay_s(sender, receiver)
    timeout_s += rtt_s
    packets = 1 + size // SEGMENT_BYTES
    while late_s < limit_s:
        loss = network.loss(sender, receiver, now + late_s)
        if network.draw_loss() < (1.0 - loss) ** packets:
            break
        if packets >= FAST_RETRANSMIT_PACKETS:
            late_s += rtt_s
            packets = max(1, round(packets * loss))
        else:
            late_s += timeout_s
            timeout_s = min(2.0 * timeout_s, RETRANSMIT_S_MAX)
    return late_s


class SimStream:
    """One end of a stream: the simulated `ByteStream`."""

    __slots__ = (
        "_at_line", "_chunks", "_drainers", "_error", "_held", "_held_since", "_is_closed", "_is_dead", "_is_detached",
        "_is_ended", "_last_arrival", "_network", "_peer", "_peer_address", "_pending", "_pending_bytes", "_read_bytes",
        "_reader", "_through_at", "_unheard_since", "_window", "binding", "net",
    )  # fmt: skip

    def __init__(self, network: Network, net: Plug, peer_address: Address, binding: bytes) -> None:
        self.net = net
        self._network = network
        self.binding = binding
        self._peer_address = peer_address
        self._peer: SimStream = self
        self._chunks: list[bytes] = []
        self._read_bytes = 0
        """Read here since the peer was last told."""
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._window = STREAM_WINDOW_BYTES
        self._last_arrival = 0.0
        """When the last piece that we sent arrives at the peer, or at its access line."""
        self._at_line: deque[_Arrival] | None = None
        """Pieces that wait for the peer's access line; None: it never had one."""
        self._through_at = 0.0
        """When the last of them is through."""
        self._held: list[_Arrival] = []
        self._held_since = 0.0
        self._unheard_since: float | None = None
        """Since when the peer cannot be heard; None: it can, or nobody has asked."""
        self._is_detached = False
        """An end has another address: nothing passes any more."""
        self._reader: Future[None] | None = None
        self._drainers: list[Future[None]] = []
        self._error = ""
        self._is_closed = False
        """Closed here; what is pending is still sent."""
        self._is_ended = False
        """The peer's end has arrived."""
        self._is_dead = False
        """Its host crashed."""
        net.streams[self] = None

    @staticmethod
    def connect(dialler: SimStream, acceptor: SimStream, *, accepted_at: float, ready_at: float) -> None:
        """Make two ends one stream; nothing arrives at an end before it exists."""
        dialler._peer, acceptor._peer = acceptor, dialler
        dialler._last_arrival, acceptor._last_arrival = accepted_at, ready_at
        dialler.suspect_both()

    # --- ByteStream -------------------------------------------------------------------------------

    @property
    def peer_address(self) -> Address:
        return self._peer_address

    @property
    def unsent_bytes(self) -> int:
        return self._pending_bytes

    async def read(self, max_bytes: int) -> bytes:
        while not self._chunks or self._error:
            if self._error:
                raise ChannelLost(self._error)
            if self._is_ended or self._is_closed:
                return b""
            if self._reader is not None:
                raise LocalProtocolError("two tasks read from one stream")
            self._reader = self._network.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = _take(self._chunks, max_bytes)
        self._read_bytes += len(data)
        if self._read_bytes >= STREAM_WINDOW_BYTES // 4 and not self._is_ended:
            self._transmit((self._peer._arrive_window, self._read_bytes, 0))
            self._read_bytes = 0
        return data

    def write(self, data: bytes) -> None:
        if data and not (self._is_closed or self._is_ended or self._error or self._is_dead):
            self._pending.append(bytes(data))
            self._pending_bytes += len(data)
            self._network.counters.bytes_sent += len(data)
            self._pump()

    async def drain(self) -> None:
        waits = self._pending_bytes > WRITE_HIGH_BYTES
        while True:
            if self._error:
                raise ChannelLost(self._error)
            if self._is_ended:
                raise ChannelLost("the peer has closed the stream")
            if not waits or self._pending_bytes <= WRITE_LOW_BYTES:
                return
            waiter: Future[None] = self._network.loop.create_future()
            self._drainers.append(waiter)
            await waiter

    def close(self) -> None:
        if self._is_closed or self._is_dead or self._error:
            return
        self._is_closed = True
        self._wake_reader()
        if not self._pending:
            self._end()

    def abort(self) -> None:
        if self._is_dead or self._error:
            return
        self._is_closed = True
        self._reset_peer("the peer reset the stream")
        self._break("the stream was aborted here")

    # --- faults -----------------------------------------------------------------------------------

    @property
    def there(self) -> Machine:
        """The machine of the peer."""
        return self._peer.net.machine

    def die(self, *, is_silent: bool) -> None:
        """The host is gone: wake nobody here; tell the peer unless `is_silent`."""
        if not self._is_dead:
            self._is_dead = True
            self._chunks.clear()
            self._pending.clear()
            self._held.clear()
            self._network.stalled.pop(self, None)
            if is_silent:
                self._peer.suspect()
            else:
                self._reset_peer("the peer's host went away")

    def detach(self) -> None:
        """One of the machines has another address: nothing passes any more, in either direction."""
        self._is_detached = self._peer._is_detached = True
        self.suspect_both()

    def suspect_both(self) -> None:
        self.suspect()
        self._peer.suspect()

    def suspect(self) -> None:
        """Something has happened on the way: if the peer cannot be heard, break unless it is again in time."""
        if self._unheard_since is None and not self._is_over() and self._is_unheard():
            network = self._network
            self._unheard_since = network.loop.time()
            network.stalled[self] = None
            network.loop.post(
                self._unheard_since + network.settings.keepalive_s, self._check_silence, self._unheard_since
            )

    def resume(self) -> None:
        """Something was mended: send what was held back, if it may pass now, at the next retransmission."""
        network = self._network
        if self._is_over():
            network.stalled.pop(self, None)
            return
        since, now = self._unheard_since, network.loop.time()
        if not self._is_unheard() or since is None or now - since >= network.settings.keepalive_s:
            self._unheard_since = None
            network.stalled.pop(self, None)
            self.suspect()  # anew, after a sleep in which its patience ran out
        if self._held and not self._is_blocked():
            at, timeout_s = self._held_since + RETRANSMIT_S, RETRANSMIT_S
            while at < now:
                timeout_s = min(2.0 * timeout_s, RETRANSMIT_S_MAX)
                at += timeout_s
            network.loop.post(at, self._retransmit, None)

    def _retransmit(self, _: Any) -> None:
        if self._held and not self._is_over():
            if self._is_blocked():  # again
                self.suspect()
                return
            held, self._held = self._held, []
            for arrival in held:
                self._transmit(arrival)

    def _check_silence(self, since: float) -> None:
        """The end of the patience that began at `since`.  A machine that sleeps goes on waiting when it wakes."""
        if self._unheard_since == since and not self._is_over() and not self.net.machine.is_unplugged:
            self._break("the peer could not be reached any more")

    def _is_over(self) -> bool:
        return self._is_dead or self._is_ended or bool(self._error)

    def _is_blocked(self) -> bool:
        """Nothing that is sent here reaches the peer's machine."""
        return self._is_detached or self._network.is_cut(self.net.machine, self.there)

    def _is_unheard(self) -> bool:
        """No acknowledgement can come."""
        peer, network = self._peer, self._network
        is_gone = peer._is_dead or bool(peer._error)
        return is_gone or self._is_blocked() or network.is_cut(self.there, self.net.machine)

    # --- sending ----------------------------------------------------------------------------------

    def _transmit(self, arrival: _Arrival) -> None:
        """Let something happen at the peer, after everything sent before."""
        network, here, there = self._network, self.net.machine, self._peer.net.machine
        loop = network.loop
        now = loop.time()
        is_awake = not (here.is_unplugged or there.is_unplugged or self._is_detached)
        if network.is_plain and is_awake and not self._held and self._at_line is None:
            at = self._last_arrival = max(now + here.lag_s + network.delay_s(here, there), self._last_arrival)
            loop.post(at, arrival[0], arrival[1])
            return
        if self._held or self._is_blocked():
            if not self._held:
                self._held_since = now
            network.counters.segments_held += 1
            self._held.append(arrival)
            self.suspect()
            return
        late_s = retransmission_s(network, here, there, arrival[2])
        if late_s >= network.settings.keepalive_s:
            self._held.append(arrival)
            self.detach()
            return
        left = now
        if here is not there:
            if here.up is not None:
                left = here.up.append(_wire_bytes(arrival[2]))
            if there.down is not None and self._at_line is None:
                self._at_line = deque()
        at = max(left + here.lag_s + network.delay_s(here, there) + late_s, self._last_arrival)
        self._last_arrival = at
        if self._at_line is None:
            network.loop.post(at, arrival[0], arrival[1])
        else:
            network.loop.post(at, self._reach_line, arrival)

    def _reach_line(self, arrival: _Arrival) -> None:
        """At the far end of the peer's access line, an event."""
        assert self._at_line is not None
        self._at_line.append(arrival)
        self._pass_line()

    def _pass_line(self, *, has_turn: bool = False) -> None:
        """Let pieces pass as the peer's access line has room; they stay in order when it changes or goes away."""
        assert self._at_line is not None
        loop, line = self._network.loop, self.there.down
        while self._at_line:
            if line is not None and not has_turn and line.is_busy():
                line.call_in_turn(self._take_turn_there)
                return
            has_turn = False
            arrive, argument, size = self._at_line.popleft()
            through = loop.time() if line is None else line.append(_wire_bytes(size))
            self._through_at = max(self._through_at, through)
            loop.post(self._through_at, arrive, argument)

    def _take_turn_there(self) -> None:
        self._pass_line(has_turn=True)

    def _reset_peer(self, reason: str) -> None:
        """Tell the peer that this end is gone.  A reset is sent once: across a cut it is lost."""
        if self._is_blocked():
            self._peer.suspect()
        else:
            self._held.clear()
            self._transmit((self._peer._arrive_reset, reason, 0))

    def _pump(self, *, has_turn: bool = False) -> None:
        """Hand over as much as the window and the access lines allow."""
        here, there = self.net.machine, self.there
        up = None if here is there else here.up
        has_line = up is not None or (there.down is not None and here is not there)
        while self._pending and self._window > 0:
            if up is not None and not has_turn and up.is_busy():
                up.call_in_turn(self._take_turn)
                break
            has_turn = False
            data = _take(self._pending, min(self._window, PIECE_BYTES) if has_line else self._window)
            self._window -= len(data)
            self._pending_bytes -= len(data)
            self._transmit((self._peer._arrive_data, data, len(data)))
        if self._pending_bytes <= WRITE_LOW_BYTES and self._drainers:
            self._wake_drainers()
        if self._is_closed and not self._pending:
            self._end()

    def _take_turn(self) -> None:
        if self._pending:
            self._pump(has_turn=True)

    def _end(self) -> None:
        self._transmit((self._peer._arrive_end, None, 0))
        self._forget()

    # --- arrivals, called as raw events -----------------------------------------------------------

    def _is_unreachable(self) -> bool:
        """True when nobody is here any more; then the sender is told, if there is a machine to tell it."""
        if not self._is_dead and not self._error:
            return False
        if not self.net.machine.is_silent:
            self._reset_peer("the peer does not know the stream any more")
        return True

    def _arrive_data(self, data: bytes) -> None:
        if self._is_closed or self._is_unreachable():
            return
        network = self._network
        network.counters.segments_delivered += 1
        network.loop.trace.record(network.loop.time(), self.net.number, Kind.STREAM, zlib.crc32(data))
        self._chunks.append(data)
        self._wake_reader()

    def _arrive_window(self, count: int) -> None:
        if not self._is_dead and not self._error:
            self._window += count
            if self._pending:
                self._pump()

    def _arrive_end(self, _: Any) -> None:
        if self._is_dead or self._error:
            return
        network = self._network
        network.loop.trace.record(network.loop.time(), self.net.number, Kind.ENDED, 0)
        self._is_ended = True
        network.stalled.pop(self, None)
        self._held.clear()
        self._pending.clear()
        self._pending_bytes = 0
        self._wake_reader()
        self._wake_drainers()
        self._forget()

    def _arrive_reset(self, reason: str) -> None:
        if self._is_dead or self._error:
            return
        network = self._network
        network.loop.trace.record(network.loop.time(), self.net.number, Kind.RESET, 0)
        self._break(reason)

    def _break(self, reason: str) -> None:
        self._error = reason
        self._network.stalled.pop(self, None)
        self._held.clear()
        self._chunks.clear()
        self._pending.clear()
        self._pending_bytes = 0
        self._wake_reader()
        self._wake_drainers()
        self._forget()

    def _forget(self) -> None:
        self.net.streams.pop(self, None)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _wake_drainers(self) -> None:
        for waiter in self._drainers:
            if not waiter.done():
                waiter.set_result(None)
        self._drainers.clear()


def _take(chunks: list[bytes], max_bytes: int) -> bytes:
    """Remove and return up to `max_bytes` (at least 1) from the front of a list that is not empty."""
    size = len(chunks[0])
    if size > max_bytes:
        data = chunks[0][:max_bytes]
        chunks[0] = chunks[0][max_bytes:]
        return data
    count = 1
    while count < len(chunks) and size + len(chunks[count]) <= max_bytes:
        size += len(chunks[count])
        count += 1
    data = chunks[0] if count == 1 else b"".join(chunks[:count])
    del chunks[:count]
    return data


def _wire_bytes(size: int) -> int:
    """What an access line carries for so many bytes of a stream."""
    return size + SEGMENT_HEADER_BYTES * (1 + size // SEGMENT_BYTES)
