"""One channel: frames, requests and replies over a stream whose both ends are proven.

Frames are handled in the order in which they come.  A one-way message is a plain call; a request runs in a task
of its own.  What is sent within one turn of the event loop leaves in one write.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from p2pcompute.errors import ChannelLost, LocalProtocolError, P2pcError, RemoteError, RemoteProtocolError
from p2pcompute.host.interfaces import Address, ByteStream, Clock, Timer
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    CHANNEL_ANSWER_S,
    CHANNEL_DEAD_S,
    CHANNEL_IDLE_S,
    CHANNEL_PING_S,
    CHANNEL_PING_S_MAX,
    CHANNEL_SPARE_S,
    CHANNEL_WRITE_BYTES_MAX,
    ERROR_TEXT_CHARS_MAX,
    FRAME_BYTES_MAX,
    JOIN_IDLE_S,
    REQUESTS_IN_FLIGHT_MAX,
    REQUESTS_SERVED_BYTES_MAX,
)
from p2pcompute.transport.credentials import PeerInfo
from p2pcompute.transport.messages import (
    REQUEST_ID_MAX,
    SERVICE_TYPE_MIN,
    MessageType,
    Purpose,
    decode_body,
    encode_message,
    is_allowed,
    peek,
)
from p2pcompute.wire.frames import FrameReader

_READ_BYTES: Final = 64 * 1024
_FRAMES_AT_ONCE: Final = 256
"""Frames handled before others get their turn on the event loop."""
_JOINED_BYTES_MAX: Final = 16 * 1024
"""Frames up to this size are copied together into one write; larger ones are written as they are."""
_RTT_WEIGHT: Final = 1 / 8
"""Weight of a new sample (RFC 6298 section 2)."""
_CODE_CHARS_MAX: Final = 64
_ANSWER_S: Final = CHANNEL_DEAD_S - CHANNEL_PING_S
"""How long an answer to a probe is waited for."""
_NO_ANSWER: Final = object()


@dataclass(slots=True)
class ChannelCounters:
    """Counted over all channels of a node."""

    opened: int = 0
    lost: int = 0
    frames_sent: int = 0
    frames_received: int = 0
    malformed: int = 0
    """Channels closed because their bytes were no message."""
    refused: int = 0
    """Messages that a service found malformed; dropped, the channel lived on."""
    unknown: int = 0
    """Messages of a type that nobody here serves, or not on this kind of channel."""
    late: int = 0
    """Replies that nobody waited for any more."""
    busy: int = 0
    """Requests refused because their peer has too many being served."""
    unread: int = 0
    """Channels cut off because the peer did not read."""
    silent: int = 0
    """Channels closed because nothing came, probes included."""
    idle: int = 0
    """Channels closed because nobody needed them."""


@dataclass(slots=True)
class _Serving:
    """Requests of one peer that are being served, over all its channels: they outlive a lost channel."""

    count: int = 0
    bytes: int = 0


@dataclass(slots=True)
class ChannelShared:
    """What all channels of a node share."""

    clock: Clock
    scope: TaskScope
    receivers: dict[int, Callable[[Any, Any], None]] = field(default_factory=dict)
    """Message type → what the service that knows it does with such a message, one-way,"""
    responders: dict[int, Callable[[Any, Any], Awaitable[Any]]] = field(default_factory=dict)
    """and with such a request."""
    counters: ChannelCounters = field(default_factory=ChannelCounters)
    serving: dict[bytes, _Serving] = field(default_factory=dict)
    is_needed: Callable[[bytes], bool] = lambda _key: False
    """Whether a service wants the channel to this peer kept open, quiet as it is."""
    is_spare: Callable[[Channel], bool] = lambda _channel: False
    """Whether another channel to its peer is used instead."""
    on_replaced: Callable[[Channel], None] = lambda _channel: None
    """Called with a channel whose peer has one with another process that has this node's key."""


class Channel:
    """An open channel to a peer.  Made by `Channels`; ends once, for whatever reason."""

    def __init__(
        self,
        shared: ChannelShared,
        stream: ByteStream,
        *,
        peer: PeerInfo,
        purpose: Purpose,
        is_dialler: bool,
        rtt_s: float,
        instance: bytes,
        session: bytes,
        on_end: Callable[[Channel], None],
    ) -> None:
        self._shared = shared
        self._stream = stream
        self.peer = peer
        self.purpose = purpose
        self.is_dialler = is_dialler
        self.rtt_s = rtt_s
        """Smoothed round-trip time in seconds, from the handshake and the probes."""
        self.instance = instance
        """Random bytes of the peer's process: another one after its restart."""
        self.address: Address = stream.peer_address
        self.binding = session
        """Names this connection, the same at both ends and never twice: for proofs that hold on this channel only."""
        self.lost_reason = ""
        self._on_end = on_end
        self._is_ended = False
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._last_request_id = 0
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._serving_count = 0
        """Requests from here that are being served."""
        self._held_bytes = 0
        """Replies that wait to be sent."""
        self._replying = asyncio.Lock()
        self._written_bytes = 0
        now = shared.clock.now()
        self._begun = now
        self._heard = now
        self._used = now
        self._ping: tuple[int, float] | None = None
        self._progress = (0, now)
        """Bytes that the peer had taken, and when that number last grew."""
        self._timer: Timer | None = None
        self._timer_at = 0.0

    def __repr__(self) -> str:
        return f"<Channel {self.purpose.name} {self.peer.name} {self.address} {self.lost_reason or 'open'}>"

    # --- for services -----------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return not self._is_ended

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked on it in either direction and nothing was sent lately."""
        return not self._pending and not self._serving_count and self.quiet_s >= CHANNEL_PING_S

    @property
    def was_heard(self) -> bool:
        """Whether anything has come on it: else it may have ended because the peer had no room for it."""
        return self._heard > self._begun

    @property
    def heard_s(self) -> float:
        """Seconds since anything came on it."""
        return self._shared.clock.now() - self._heard

    @property
    def unanswered_since(self) -> float | None:
        """When a sign of life was asked for that is overdue and has not come; None: nothing is overdue."""
        if self._ping is None or self._ping[1] < self._heard:
            return None
        return self._ping[1] if self._shared.clock.now() - self._ping[1] >= CHANNEL_ANSWER_S else None

    @property
    def quiet_s(self) -> float:
        """Seconds since the last message in either direction, probes not counted."""
        return self._shared.clock.now() - self._used

    @property
    def unsent_bytes(self) -> int:
        return self._out_bytes + self._stream.unsent_bytes

    def send(self, message_type: int, body: Any) -> None:
        """Send a one-way message; silently dropped when the channel is gone.

        A peer that leaves more than CHANNEL_WRITE_BYTES_MAX unread is cut off; who sends much waits in `drain`.

        Raises:
            LocalProtocolError: the message cannot be encoded or is longer than a frame.
        """
        if not self._is_ended:
            self._use()
            self._enqueue(encode_message(message_type, 0, body))

    async def request(self, message_type: int, body: Any, *, timeout_s: float) -> Any:
        """Ask and return the reply.  Cancelled: the peer may still do it, its reply is dropped.

        Raises:
            ChannelLost: the channel broke, or no answer came within `timeout_s` (code "no-answer"); the peer may
                have done it or not.
            RemoteError: the peer answered with an error.
            P2pcError: REQUESTS_IN_FLIGHT_MAX requests are unanswered (code "busy"); nothing was sent.
            LocalProtocolError: the message cannot be encoded or is longer than a frame.
        """
        if self._is_ended:
            raise self._lost()
        if len(self._pending) >= REQUESTS_IN_FLIGHT_MAX:
            raise P2pcError(f"{self.peer.name} has too many open requests", "", "ask again later", code="busy")
        request_id = self._next_request_id()
        data = encode_message(message_type, request_id, body)
        pending = self._pending[request_id] = asyncio.get_running_loop().create_future()
        try:
            self._use()
            self._enqueue(data)
            async with self._shared.clock.timeout(timeout_s):
                answer = await pending
        except TimeoutError as error:
            raise ChannelLost(
                f"{self.peer.name} did not answer", f"waited {timeout_s:g} s", code="no-answer"
            ) from error
        finally:
            self._pending.pop(request_id, None)
        if answer is _NO_ANSWER:
            raise self._lost()
        if isinstance(answer, RemoteError):
            raise answer
        return answer

    async def drain(self) -> None:
        """Wait until the peer has taken enough for more to be sent.

        Raises:
            ChannelLost: the channel is gone.
        """
        self._flush()
        if not self._is_ended:
            await self._stream.drain()
        if self._is_ended:
            raise self._lost()

    def close(self, reason: str = "closed here") -> None:
        """Send what is queued, then close.  Requests in flight fail."""
        self._end(reason, is_abort=False)

    # --- for Channels -----------------------------------------------------------------------------

    async def run(self, reader: FrameReader, frames: Sequence[bytes]) -> None:
        """Handle what comes until the channel ends.  Cancelled: the channel is aborted.

        Args:
            reader: holds what has come already of the next frame.
            frames: have come already.
        """
        self._tick()
        reason = "this node has failed or is shutting down"
        try:
            handled = 0
            while True:
                for frame in frames:
                    self._dispatch(frame)
                    if self._is_ended:
                        return
                handled += len(frames)
                if handled >= _FRAMES_AT_ONCE:
                    handled = 0
                    await self._shared.clock.sleep(0)
                data = await self._stream.read(_READ_BYTES)
                if not data:
                    reason = "closed by the peer"
                    return
                self._heard = self._shared.clock.now()
                frames = reader.feed(data)
        except ChannelLost as error:
            reason = error.why or error.what
        except RemoteProtocolError as error:
            self._shared.counters.malformed += 1
            reason = f"malformed: {error.what}"
        finally:
            self._end(reason, is_abort=True)

    def abort(self, reason: str) -> None:
        """Close at once and forget what is queued."""
        self._end(reason, is_abort=True)

    def replace(self) -> None:
        """Close at once for another process with the peer's key; tell the peer, if it is still there."""
        if not self._is_ended:
            self._enqueue(encode_message(MessageType.REPLACED, 0, None))
            self._flush()
        self._end("the peer was restarted", is_abort=True)

    # --- receiving --------------------------------------------------------------------------------

    def _dispatch(self, frame: bytes) -> None:
        counters = self._shared.counters
        counters.frames_received += 1
        message_type, request_id = peek(frame)
        if message_type < SERVICE_TYPE_MIN:
            self._dispatch_own(message_type, request_id, frame)
            return
        self._used = self._heard
        is_known = is_allowed(self.purpose, message_type)
        if request_id:
            serve = self._shared.responders.get(message_type) if is_known else None
            if serve is None:
                counters.unknown += 1
                self._send_error(request_id, "unknown", "this node does not know that request")
            else:
                self._begin(request_id, serve, decode_body(frame), len(frame))
            return
        receive = self._shared.receivers.get(message_type) if is_known else None
        if receive is None:
            counters.unknown += 1
            return
        body = decode_body(frame)
        try:
            receive(self, body)
        except RemoteProtocolError:
            counters.refused += 1

    def _dispatch_own(self, message_type: int, request_id: int, frame: bytes) -> None:
        """Messages of transport itself.  Unknown ones are of a later version: dropped."""
        match message_type:
            case MessageType.REPLY | MessageType.ERROR:
                self._used = self._heard
                pending = self._pending.pop(request_id, None)
                if pending is None or pending.done():
                    self._shared.counters.late += 1
                    return
                try:
                    body = decode_body(frame)
                except RemoteProtocolError:
                    pending.set_result(_NO_ANSWER)
                    raise
                pending.set_result(body if message_type == MessageType.REPLY else read_error(body))
            case MessageType.PING:
                self._enqueue(encode_message(MessageType.PONG, request_id, None))
            case MessageType.PONG:
                if self._ping is not None and self._ping[0] == request_id:
                    sample = self._heard - self._ping[1]
                    self.rtt_s += _RTT_WEIGHT * (sample - self.rtt_s)
                    self._ping = None
            case MessageType.REPLACED:
                self._shared.on_replaced(self)
            case _:
                self._shared.counters.unknown += 1

    # --- serving ----------------------------------------------------------------------------------

    def _begin(self, request_id: int, serve: Callable[[Any, Any], Awaitable[Any]], body: Any, size: int) -> None:
        shared = self._shared
        serving = shared.serving.setdefault(self.peer.key, _Serving())
        if serving.count >= REQUESTS_IN_FLIGHT_MAX or serving.bytes + size > REQUESTS_SERVED_BYTES_MAX:
            shared.counters.busy += 1
            self._send_error(request_id, "busy", "too many requests of this peer are being served")
            return
        serving.count += 1
        serving.bytes += size
        self._serving_count += 1
        task = shared.scope.spawn(self._serve(request_id, serve, body), "request")
        task.add_done_callback(lambda _: self._served(serving, size))

    def _served(self, serving: _Serving, size: int) -> None:
        serving.count -= 1
        serving.bytes -= size
        self._serving_count -= 1
        if serving.count == 0:
            self._shared.serving.pop(self.peer.key, None)

    async def _serve(self, request_id: int, serve: Callable[[Any, Any], Awaitable[Any]], body: Any) -> None:
        """Serve one request to its end, also when the channel is lost meanwhile; then the reply is dropped."""
        try:
            reply = encode_message(MessageType.REPLY, request_id, await serve(self, body))
            if len(reply) > FRAME_BYTES_MAX:
                raise LocalProtocolError(f"a reply of {len(reply)} bytes")
        except LocalProtocolError:
            self._send_error(request_id, "internal", "this node failed to serve the request")
            raise
        except P2pcError as error:
            if isinstance(error, RemoteProtocolError):
                self._shared.counters.refused += 1
            self._send_error(request_id, error.code, error.what)
            return
        except Exception:  # a bug of ours: the peer is told, and it is raised again
            self._send_error(request_id, "internal", "this node failed to serve the request")
            raise
        await self._send_reply(request_id, reply)

    async def _send_reply(self, request_id: int, reply: bytes) -> None:
        """Send a reply when the peer has read enough of those before it."""
        if self._held_bytes + len(reply) > CHANNEL_WRITE_BYTES_MAX:
            self._shared.counters.busy += 1
            self._send_error(request_id, "busy", "too many replies wait to be read")
            return
        self._held_bytes += len(reply)
        try:
            # One at a time: several that were woken by the same drain would together overfill the channel.
            async with self._replying:
                await self.drain()
                self._use()
                self._enqueue(reply)
        except ChannelLost:
            return
        finally:
            self._held_bytes -= len(reply)

    def _send_error(self, request_id: int, code: str, what: str) -> None:
        self._enqueue(encode_message(MessageType.ERROR, request_id, make_error(code, what)))

    # --- sending ----------------------------------------------------------------------------------

    def _next_request_id(self) -> int:
        while True:
            self._last_request_id = self._last_request_id % REQUEST_ID_MAX + 1
            if self._last_request_id not in self._pending:
                return self._last_request_id

    def _enqueue(self, data: bytes) -> None:
        """Queue one frame to leave at the end of this turn of the event loop."""
        if self._is_ended:
            return
        size = len(data)
        if not 0 < size <= FRAME_BYTES_MAX:
            raise LocalProtocolError(f"a frame of {size} bytes", f"at most {FRAME_BYTES_MAX} fit")
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(size.to_bytes(4, "big"))
        self._out.append(data)
        self._out_bytes += size + 4
        self._shared.counters.frames_sent += 1
        if self.unsent_bytes > CHANNEL_WRITE_BYTES_MAX:
            self._shared.counters.unread += 1
            self.abort("the peer does not read")

    def _flush(self) -> None:
        if not self._out or self._is_ended:
            return
        parts, self._out = self._out, []
        if self._stream.unsent_bytes == 0:
            self._progress = (self._written_bytes, self._shared.clock.now())
        self._written_bytes += self._out_bytes
        if self._out_bytes <= _JOINED_BYTES_MAX:
            self._stream.write(b"".join(parts))
            self._out_bytes = 0
            return
        small: list[bytes] = []
        for part in parts:
            if len(part) <= _JOINED_BYTES_MAX:
                small.append(part)
                continue
            self._stream.write(b"".join(small))
            small.clear()
            self._stream.write(part)
        if small:
            self._stream.write(b"".join(small))
        self._out_bytes = 0

    # --- life -------------------------------------------------------------------------------------

    def probe(self) -> None:
        """Ask for a sign of life now, when none is awaited already."""
        if self._ping is None and not self._is_ended:
            request_id = self._next_request_id()
            now = self._shared.clock.now()
            self._ping = (request_id, now)
            self._enqueue(encode_message(MessageType.PING, request_id, None))
            if self._timer is not None and self._timer_at > now + _ANSWER_S:
                self._timer.cancel()
                self._arm(now, now + _ANSWER_S)

    def _tick(self) -> None:
        """Check life, progress and use; arm the timer for the next time when one of them can change."""
        self._timer = None
        if self._is_ended:
            return
        now = self._shared.clock.now()
        is_spare = self._shared.is_spare(self)
        idle_s = JOIN_IDLE_S if self.purpose is Purpose.JOIN else CHANNEL_SPARE_S if is_spare else CHANNEL_IDLE_S
        taken = self._written_bytes - self._stream.unsent_bytes
        if taken > self._progress[0] or self.unsent_bytes == 0:
            self._progress = (taken, now)
        if self._ping is not None and self._ping[1] > self._heard:
            probe_at, dead_at = math.inf, max(self._heard + CHANNEL_DEAD_S, self._ping[1] + _ANSWER_S)
        else:
            # Twice as long as the last time when nothing but probes has passed.
            gap_s = min(CHANNEL_PING_S_MAX, max(CHANNEL_PING_S, self._heard - self._used))
            probe_at, dead_at = self._heard + gap_s, math.inf
        if now >= dead_at:
            self._shared.counters.silent += 1
            self.abort(f"silent for {now - self._heard:.0f} s")
            return
        if now - self._progress[1] >= CHANNEL_DEAD_S:
            self._shared.counters.unread += 1
            self.abort("the peer does not read")
            return
        is_needed = self.purpose is Purpose.CONTROL and not is_spare and self._shared.is_needed(self.peer.key)
        if now - self._used >= idle_s and not self._pending and not self._serving_count and not is_needed:
            self._shared.counters.idle += 1
            self._end("idle", is_abort=False)
            return
        if now >= probe_at:
            self.probe()
            probe_at, dead_at = math.inf, max(self._heard + CHANNEL_DEAD_S, now + _ANSWER_S)
        due = min(probe_at, dead_at)
        if self.unsent_bytes:
            due = min(due, now + CHANNEL_PING_S)
        if now - self._used < idle_s:
            due = min(due, self._used + idle_s)
        self._arm(now, due)

    def _use(self) -> None:
        """Note that a service sends something now; a peer that does not answer or read is found out in time."""
        self._used = now = self._shared.clock.now()
        if self._timer is not None and self._timer_at > now + CHANNEL_PING_S:
            self._timer.cancel()
            self._arm(now, now + CHANNEL_PING_S)

    def _arm(self, now: float, due: float) -> None:
        self._timer_at = max(due, now + 0.01)
        self._timer = self._shared.clock.call_later(self._timer_at - now, self._tick)

    def _end(self, reason: str, *, is_abort: bool) -> None:
        if self._is_ended:
            return
        if not is_abort:
            self._flush()
        self._is_ended = True
        self.lost_reason = reason
        self._out.clear()
        self._out_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
        if is_abort:
            self._stream.abort()
        else:
            self._stream.close()
        pending, self._pending = self._pending, {}
        for entry in pending.values():
            if not entry.done():
                entry.set_result(_NO_ANSWER)
        self._shared.counters.lost += 1
        self._on_end(self)

    def _lost(self) -> ChannelLost:
        return ChannelLost(f"the channel to {self.peer.name} is gone", self.lost_reason)


def make_error(code: str, what: str) -> dict[str, str]:
    """Return the body of ERROR."""
    return {"code": code[:_CODE_CHARS_MAX], "what": what[:ERROR_TEXT_CHARS_MAX]}


def read_error(body: Any) -> RemoteError:
    """Return what a peer's ERROR says.

    Raises:
        RemoteProtocolError: malformed.
    """
    if not isinstance(body, dict):
        raise RemoteProtocolError("an error is not a map")
    code, what = body.get("code"), body.get("what")
    if not isinstance(code, str) or not isinstance(what, str):
        raise RemoteProtocolError("an error without code or text")
    # It may be shown on a terminal.
    code, what = ("".join(char if char.isprintable() else " " for char in text) for text in (code, what))
    return RemoteError(what[:ERROR_TEXT_CHARS_MAX], "the peer says so", code=code[:_CODE_CHARS_MAX])
