"""All channels of a node: listening, dialling, one control channel per peer reused.

If two nodes dial each other at once, both channels live.  `get` returns at both ends the one that the node with the
smaller key has dialled, and the other closes when it is idle: if each end used its own, both would stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from msgspec import Struct

from p2pcompute.errors import (
    ChannelLost,
    LocalProtocolError,
    P2pcError,
    RemoteProtocolError,
    TrustError,
    VersionMismatch,
)
from p2pcompute.host.interfaces import Address, ByteStream, Host, StreamListener
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    CHANNELS_MAX,
    CHANNELS_PER_PEER_MAX,
    DIAL_ADDRESSES_MAX,
    DIAL_STAGGER_S,
    FRAME_BYTES_MAX,
    HANDSHAKE_BURST_MAX,
    HANDSHAKE_BYTES_MAX,
    HANDSHAKE_RATE_PER_S_MAX,
    HANDSHAKE_S_MAX,
    HANDSHAKES_MAX,
    JOIN_LIFE_S,
    NODE_NAME_CHARS_MAX,
    RATE_SOURCES_MAX,
    STRANGERS_MAX,
)
from p2pcompute.transport import handshake
from p2pcompute.transport.channel import (
    Channel,
    ChannelCounters,
    ChannelShared,
    make_error,
    read_error,
)
from p2pcompute.transport.credentials import ANYBODY, WORDS_KEY, Credentials, PeerInfo, invite_key
from p2pcompute.transport.messages import SERVICE_TYPE_MIN, MessageType, Purpose, decode_body, encode_message, peek
from p2pcompute.transport.rate import Crowd, TokenBuckets, source_of
from p2pcompute.wire.frames import FrameReader, frame

__all__ = ["Channel", "Channels", "Purpose"]

T = TypeVar("T")
_READ_BYTES: Final = 64 * 1024
_BUSY: Final = "busy"
MADE_ROOM: Final = "closed to make room for another one"
"""Why a channel ended that was closed here and whose peer is not gone."""


@dataclass(slots=True)
class HandshakeCounters:
    """Connections by how their handshake ended, both directions together."""

    completed: int = 0
    malformed: int = 0
    """The other side broke the protocol or could not prove its key."""
    refused: int = 0
    """Key proven, but not a member, no common version, or no place left."""
    broken: int = 0
    """Connection lost or too slow."""
    busy: int = 0
    """Closed because HANDSHAKES_MAX others were in theirs, or STRANGERS_MAX other strangers there."""
    limited: int = 0
    """Not admitted: above the rate of its source."""


class _Proven(Struct, frozen=True, kw_only=True):
    """A finished handshake."""

    stream: ByteStream
    peer: PeerInfo
    purpose: Purpose
    is_dialler: bool
    rtt_s: float
    instance: bytes
    session: bytes
    """Names this connection: see `handshake.session_of`."""
    reader: FrameReader
    frames: list[bytes]
    """What came behind WELCOME already."""


class _Frames:
    """Reads handshake frames one by one."""

    def __init__(self, stream: ByteStream, frame_bytes_max: int) -> None:
        self._stream = stream
        self.reader = FrameReader(frame_bytes_max)
        self.rest: list[bytes] = []
        """Frames that came behind those read."""

    async def next(self) -> bytes:
        while not self.rest:
            data = await self._stream.read(_READ_BYTES)
            if not data:
                raise ChannelLost("closed by the other side", "during the handshake")
            self.rest = self.reader.feed(data)
        return self.rest.pop(0)


class Channels:
    """The channels of one node.

    Args:
        host: what the node stands on.
        credentials: who we are and whom we accept.
        scope: owns all tasks; closing it aborts every channel.
    """

    def __init__(self, host: Host, credentials: Credentials, scope: TaskScope) -> None:
        self._host = host
        self._credentials = credentials
        self._scope = scope
        self._own_key = credentials.identity.public_key
        self._instance = host.crypto.random_bytes(handshake.INSTANCE_BYTES)
        self._shared = ChannelShared(host.clock, scope)
        self._shared.is_spare = self._is_spare
        self._listener: StreamListener | None = None
        self._certificate = b""
        self._gate = handshake.PreambleGate(self._own_key)
        self._rates = TokenBuckets(
            rate_per_s=HANDSHAKE_RATE_PER_S_MAX, burst=HANDSHAKE_BURST_MAX, sources_max=RATE_SOURCES_MAX
        )
        self._inbound_count = 0
        self._strangers: Crowd[ByteStream] = Crowd(STRANGERS_MAX)
        """Streams of those who have no secret of ours, from accept to end."""
        self._open: dict[Channel, None] = {}
        """Every open channel, oldest first."""
        self._by_key: dict[bytes, list[Channel]] = {}
        """Channels of each peer, oldest first."""
        self._dials: dict[bytes, asyncio.Task[Channel | P2pcError]] = {}
        self.handshakes = HandshakeCounters()
        self.on_open: Callable[[Channel], None] = _ignore
        """Called with each new control channel, before anything that comes on it is handled."""
        self.on_lost: Callable[[Channel], None] = _ignore
        """Called once with each control channel that ended, whoever ended it."""
        self.is_awaited: Callable[[bytes], bool] = lambda _key: False
        """Says whether a peer waits for something that this node does."""
        self.on_refused: Callable[[bytes, TrustError], None] = lambda _key, _refusal: None
        """Called with the key of a node that was dialled and did not take this one for a member, and what it said."""

    @property
    def is_needed(self) -> Callable[[bytes], bool]:
        """Asked before a quiet control channel to this peer is closed; set by the service that knows."""
        return self._shared.is_needed

    @is_needed.setter
    def is_needed(self, is_needed: Callable[[bytes], bool]) -> None:
        self._shared.is_needed = is_needed

    @property
    def on_replaced(self) -> Callable[[Channel], None]:
        """Called with a channel whose peer says that another process has this node's key."""
        return self._shared.on_replaced

    @on_replaced.setter
    def on_replaced(self, on_replaced: Callable[[Channel], None]) -> None:
        self._shared.on_replaced = on_replaced

    @property
    def counters(self) -> ChannelCounters:
        """See `ChannelCounters`; those of handshakes are in `handshakes`, those of preambles in `preambles`."""
        return self._shared.counters

    @property
    def preambles(self) -> handshake.PreambleCounters:
        return self._gate.counters

    # --- services ---------------------------------------------------------------------------------

    def on_request(self, message_type: int, serve: Callable[[Channel, Any], Awaitable[Any]]) -> None:
        """Serve requests of a type: `serve` returns the reply's body, or raises P2pcError, which is sent as
        an error with its code.  Runs in a task of its own, which a lost channel does not cancel."""
        _register(self._shared.responders, message_type, serve)

    def on_message(self, message_type: int, receive: Callable[[Channel, Any], None]) -> None:
        """Receive one-way messages of a type.  `receive` is called in order and must not take long; it may
        raise RemoteProtocolError, which is counted."""
        _register(self._shared.receivers, message_type, receive)

    def get(self, key: bytes) -> Channel | None:
        """The open control channel to a peer; of several the one that both ends use, of those the oldest."""
        for channel in self._by_key.get(key, ()):
            if channel.purpose is Purpose.CONTROL:
                return channel
        return None

    def all(self) -> list[Channel]:
        """All open control channels, oldest first."""
        return [channel for channel in self._open if channel.purpose is Purpose.CONTROL]

    def cut(self, is_refused: Callable[[bytes], bool]) -> int:
        """Close every channel, of whatever purpose, to installations that are refused from now on; how many.

        What is queued is still sent, so that they may hear why.
        """
        cut = [channel for channel in self._open if is_refused(channel.peer.installation)]
        for channel in cut:
            channel.close()
        return len(cut)

    # --- listening --------------------------------------------------------------------------------

    async def listen(self, port: int, *, loopback_only: bool) -> int:
        """Accept connections on a TCP port (0: any).  Returns the bound port."""
        if self._listener is not None:
            raise LocalProtocolError("already listening")
        self._listener = await self._host.net.listen_stream(
            port, loopback_only=loopback_only, admit=self._admit, accept=self._accept
        )
        self._certificate = handshake.certify(self._credentials.identity, self._listener.binding)
        return self._listener.port

    async def stop_listening(self) -> None:
        """Accept no more connections; open channels live on.  `listen` may be called again."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()

    async def close(self) -> None:
        """Stop listening and close every channel, sending what is queued."""
        await self.stop_listening()
        for task in list(self._dials.values()):
            task.cancel()
        for channel in list(self._open):
            channel.close()

    def _preamble_keys(self) -> Iterator[bytes]:
        """Those of invitations are looked up only for who has none of the network."""
        yield from self._credentials.network_keys()
        yield from self._credentials.invite_keys()

    def _admit(self, preamble: bytes, source: Address) -> bool:
        if not self._gate.admit(preamble, self._preamble_keys(), self._host.clock.wall()):
            return False
        if not self._rates.take(source_of(source.host, source.port), self._host.clock.now()):
            self.handshakes.limited += 1
            return False
        return True

    def _accept(self, stream: ByteStream, preamble: bytes) -> None:
        if self._inbound_count >= HANDSHAKES_MAX or self._listener is None:
            self.handshakes.busy += 1
            stream.abort()
            return
        if handshake.match_preamble(preamble, [WORDS_KEY], self._own_key) is not None:
            longest = self._strangers.add(stream, source_of(stream.peer_address.host, 0))
            if longest is not None:
                self.handshakes.busy += 1
                longest.abort()
        self._inbound_count += 1
        task = self._scope.spawn(self._receive_handshake(stream, preamble), "inbound")
        task.add_done_callback(lambda task: self._inbound_ended(task, stream))

    def _inbound_ended(self, task: asyncio.Task[Any], stream: ByteStream) -> None:
        self._inbound_count -= 1
        if task.cancelled():
            self._strangers.discard(stream)
            stream.abort()

    async def _receive_handshake(self, stream: ByteStream, preamble: bytes) -> None:
        """Prove both keys of an inbound connection.  Cancelled: the connection is closed."""
        is_done = False
        try:
            async with self._host.clock.timeout(HANDSHAKE_S_MAX):
                proven = await self._answer(stream, preamble)
            is_done = self._finish(proven) is not None
        except (ChannelLost, TimeoutError):
            self.handshakes.broken += 1
        except (TrustError, VersionMismatch) as error:
            self.handshakes.refused += 1
            _write(stream, MessageType.ERROR, make_error(error.code, error.what))
            self._strangers.discard(stream)
            stream.close()
            is_done = True
        except RemoteProtocolError:
            self.handshakes.malformed += 1
        finally:
            if not is_done:
                self._strangers.discard(stream)
                stream.abort()

    async def _answer(self, stream: ByteStream, preamble: bytes) -> _Proven:
        """The listener's side: HELLO, AUTH, WELCOME."""
        clock, crypto, credentials = self._host.clock, self._host.crypto, self._credentials
        nonce = crypto.random_bytes(handshake.NONCE_BYTES)
        is_invited = handshake.match_preamble(preamble, credentials.network_keys(), self._own_key) is None
        said = {"name": credentials.name} if is_invited else credentials.hello()
        hello = handshake.make_hello(self._certificate, nonce=nonce, instance=self._instance, hello=said)
        started = clock.now()
        _write(stream, MessageType.HELLO, hello)
        # Nothing may follow AUTH before WELCOME, so this small reader is done with after one frame.
        frames = _Frames(stream, HANDSHAKE_BYTES_MAX)
        body = _expect(await frames.next(), MessageType.AUTH)
        rtt_s = clock.now() - started
        if frames.rest:
            raise RemoteProtocolError("more than AUTH came before WELCOME")
        auth = handshake.check_auth(crypto, body, binding=stream.binding, nonce=nonce, listener=self._own_key)
        version = handshake.negotiate(auth.versions)
        if is_invited != (auth.purpose is Purpose.JOIN):
            raise RemoteProtocolError("an invitation opens a joining channel, and only it does")
        if is_invited:
            if handshake.match_preamble(preamble, credentials.invite_keys(), self._own_key) is None:
                raise TrustError("the invitation is no longer open", "", "ask for a new one")
            peer = _stranger(auth.key, auth.hello)
        else:
            peer = credentials.check_peer(auth.key, auth.hello)
        if not self._has_room(auth.key):
            raise TrustError("this node has too many channels open", "", "try again later", code=_BUSY)
        _write(stream, MessageType.WELCOME, handshake.make_welcome(version))
        return _Proven(
            stream=stream,
            peer=peer,
            purpose=auth.purpose,
            is_dialler=False,
            rtt_s=rtt_s,
            instance=auth.instance,
            session=handshake.session_of(binding=stream.binding, nonce=nonce, listener=self._own_key, dialler=auth.key),
            reader=FrameReader(),
            frames=[],
        )

    # --- dialling ---------------------------------------------------------------------------------

    async def connect(
        self,
        key: bytes,
        addresses: Sequence[Address],
        *,
        purpose: Purpose = Purpose.CONTROL,
        invite_secret: bytes | None = None,
    ) -> Channel:
        """Return a channel to the node with this key.

        An open control channel is reused, and however many ask for one, it is dialled once.  Cancelled: a
        control channel that is being dialled may still open.

        Args:
            addresses: tried in this order, each with a head start of DIAL_STAGGER_S; at most DIAL_ADDRESSES_MAX.
            invite_secret: of the invitation; for purpose JOIN, and only for it.

        Raises:
            ChannelLost: no address led to that node.
            TrustError: it refused us, or is not a member itself.
            VersionMismatch: there is no common protocol version.
        """
        if key == self._own_key:
            raise ChannelLost("a node does not connect to itself", "", code="self")
        if (invite_secret is not None) != (purpose is Purpose.JOIN):
            raise LocalProtocolError("an invitation opens a joining channel, and only it does")
        if purpose is not Purpose.CONTROL:
            return await self._dial(key, addresses, purpose, invite_secret)
        channel = self.get(key)
        if channel is not None:
            return channel
        task = self.dial(key, addresses)
        try:
            result = await asyncio.shield(task)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if task.cancelled() and not (current is not None and current.cancelling()):
                raise ChannelLost("this node is shutting down") from None
            raise
        if isinstance(result, Channel):
            return result
        raise result

    def dial(self, key: bytes, addresses: Sequence[Address]) -> asyncio.Task[Channel | P2pcError]:
        """Begin to open a control channel, unless that is under way, and return the task.

        Its result is the channel, or why there is none; `on_open` has been called before it is done.
        """
        task = self._dials.get(key)
        if task is None:
            task = self._scope.spawn(self._dial_control(key, addresses), "dial")
            self._dials[key] = task
            task.add_done_callback(lambda _: self._dials.pop(key, None))
        return task

    async def _dial_control(self, key: bytes, addresses: Sequence[Address]) -> Channel | P2pcError:
        """Dial for everybody who waits; an error is a result, because it may be that nobody does any more."""
        try:
            return await self._dial(key, addresses, Purpose.CONTROL, None)
        except P2pcError as error:
            return error

    async def meet(self, addresses: Sequence[Address], key: bytes | None = None) -> Channel:
        """Return a joining channel to a node that has an invitation by words open; `peer.key` says who that is.

        Args:
            key: whom it must be, where that is known; None: whoever answers.

        What it is worth has to be proven over it: see `trust.pake`.

        Raises:
            ChannelLost: no address led to such a node.
            TrustError, VersionMismatch: as `connect`.
        """
        channel = await self._dial(None, addresses, Purpose.JOIN, None)
        if key is not None and channel.peer.key != key:
            channel.close()
            raise TrustError(
                "another node answered than the one that announced the invitation",
                "somebody may want to be taken for it; nothing was tried",
                "give the address of the inviting computer: p2pc join CODE@HOST:PORT",
                code="two-inviters",
            )
        return channel

    async def _dial(
        self, key: bytes | None, addresses: Sequence[Address], purpose: Purpose, invite_secret: bytes | None
    ) -> Channel:
        if not self._has_room(key or ANYBODY):
            raise ChannelLost("too many channels are open", "", "try again later", code=_BUSY)
        targets = list(dict.fromkeys(addresses))[:DIAL_ADDRESSES_MAX]
        if not targets:
            raise ChannelLost("the node cannot be reached", "no address is known")
        if key is None:
            preamble_key = WORDS_KEY
        else:
            preamble_key = self._credentials.network_keys()[0] if invite_secret is None else invite_key(invite_secret)
        if len(targets) == 1:
            proven = await self._attempt(key, targets[0], purpose, preamble_key)
        else:
            attempts = _Attempts(self._host, lambda address: self._attempt(key, address, purpose, preamble_key))
            proven = await attempts.first_of(targets)
        channel = self._finish(proven)
        if channel is None:
            raise ChannelLost("too many channels are open", "", "try again later", code=_BUSY)
        return channel

    async def _attempt(self, key: bytes | None, address: Address, purpose: Purpose, preamble_key: bytes) -> _Proven:
        """Dial one address and prove both keys.  Cancelled or failed: the connection is closed."""
        preamble = handshake.make_preamble(
            preamble_key,
            listener=key or ANYBODY,
            wall=self._host.clock.wall(),
            nonce=self._host.crypto.random_bytes(handshake.PREAMBLE_NONCE_BYTES),
        )
        stream: ByteStream | None = None
        is_done = False
        try:
            async with self._host.clock.timeout(HANDSHAKE_S_MAX):
                stream = await self._host.net.dial_stream(address, preamble, timeout_s=HANDSHAKE_S_MAX)
                proven = await self._prove(stream, key, purpose)
            is_done = True
            return proven
        except (ChannelLost, TimeoutError) as error:
            self.handshakes.broken += 1
            raise ChannelLost(f"no channel to {address}", str(error) or "too slow") from error
        except RemoteProtocolError as error:
            self.handshakes.malformed += 1
            raise ChannelLost(f"no channel to {address}", error.what) from error
        except (TrustError, VersionMismatch) as error:
            self.handshakes.refused += 1
            if key is not None and isinstance(error, TrustError):
                self.on_refused(key, error)
            raise
        finally:
            if stream is not None and not is_done:
                stream.abort()

    async def _prove(self, stream: ByteStream, key: bytes | None, purpose: Purpose) -> _Proven:
        """The dialler's side: HELLO, AUTH, WELCOME."""
        clock, crypto, credentials = self._host.clock, self._host.crypto, self._credentials
        frames = _Frames(stream, FRAME_BYTES_MAX)
        body = _expect(await frames.next(), MessageType.HELLO)
        hello = handshake.check_hello(crypto, body, binding=stream.binding, listener=key)
        version = handshake.negotiate(hello.versions)
        key = hello.key
        if purpose is Purpose.JOIN:
            peer = _stranger(key, hello.hello)
            said: dict[str, Any] = {"name": credentials.name}
        else:
            peer = credentials.check_peer(key, hello.hello)
            said = credentials.hello()
        auth = handshake.make_auth(
            credentials.identity,
            purpose=purpose,
            binding=stream.binding,
            nonce=hello.nonce,
            listener=key,
            instance=self._instance,
            hello=said,
        )
        started = clock.now()
        _write(stream, MessageType.AUTH, auth)
        handshake.check_welcome(_expect(await frames.next(), MessageType.WELCOME), version)
        return _Proven(
            stream=stream,
            peer=peer,
            purpose=purpose,
            is_dialler=True,
            rtt_s=clock.now() - started,
            instance=hello.instance,
            session=handshake.session_of(
                binding=stream.binding, nonce=hello.nonce, listener=key, dialler=self._own_key
            ),
            reader=frames.reader,
            frames=frames.rest,
        )

    # --- the table --------------------------------------------------------------------------------

    def _has_room(self, key: bytes) -> bool:
        """Whether one more channel fits; closes an idle one when there are too many."""
        if len(self._by_key.get(key, ())) >= CHANNELS_PER_PEER_MAX and not self._close_one(self._by_key[key]):
            return False
        return len(self._open) < CHANNELS_MAX or self._close_one(list(self._open))

    def _close_one(self, channels: Sequence[Channel]) -> bool:
        """Close an idle channel: one of several to a peer, which nobody misses, or else the least recently used one.
        The only one to a peer that waits for something from here stays: it would take this node for dead."""
        doubles = {channel for channel in channels if self._is_double(channel)}
        idle = [one for one in channels if one.is_idle and (one in doubles or not self.is_awaited(one.peer.key))]
        if not idle:
            return False
        max(idle, key=lambda channel: (channel in doubles, channel.quiet_s)).close(MADE_ROOM)
        return True

    def _is_double(self, channel: Channel) -> bool:
        return sum(other.purpose is channel.purpose for other in self._by_key.get(channel.peer.key, ())) > 1

    def _is_spare(self, channel: Channel) -> bool:
        return channel.purpose is Purpose.CONTROL and self.get(channel.peer.key) not in (channel, None)

    def _finish(self, proven: _Proven) -> Channel | None:
        """Make a channel of a finished handshake; None (and the connection closed) when there is no room."""
        if not self._has_room(proven.peer.key):
            self.handshakes.refused += 1
            proven.stream.abort()
            return None
        self.handshakes.completed += 1
        self._shared.counters.opened += 1
        channel = Channel(
            self._shared,
            proven.stream,
            peer=proven.peer,
            purpose=proven.purpose,
            is_dialler=proven.is_dialler,
            rtt_s=proven.rtt_s,
            instance=proven.instance,
            session=proven.session,
            on_end=self._ended,
        )
        self._drop_former(channel)
        self._open[channel] = None
        channels = self._by_key.setdefault(channel.peer.key, [])
        channels.append(channel)
        channels.sort(key=lambda one: one.is_dialler is not (self._own_key < one.peer.key))
        if channel.purpose is Purpose.CONTROL:
            self.on_open(channel)
        elif channel.purpose is Purpose.JOIN:
            self._host.clock.call_later(JOIN_LIFE_S, lambda: channel.abort("joining took too long"))
        task = self._scope.spawn(channel.run(proven.reader, proven.frames), "channel")
        task.add_done_callback(partial(self._channel_ended, channel, proven.stream))
        return channel

    def _drop_former(self, channel: Channel) -> None:
        """End the channels of the peer's former process: after a restart without a goodbye they look alive."""
        for other in list(self._by_key.get(channel.peer.key, ())):
            if other.instance != channel.instance:
                other.replace()
            else:
                other.probe()

    def _channel_ended(self, channel: Channel, stream: ByteStream, _task: asyncio.Task[Any]) -> None:
        channel.abort("this node is shutting down")  # a task cancelled before its first step reaches no `finally`
        self._strangers.discard(stream)

    def _ended(self, channel: Channel) -> None:
        self._open.pop(channel, None)
        channels = self._by_key.get(channel.peer.key, [])
        if channel in channels:
            channels.remove(channel)
        if not channels:
            self._by_key.pop(channel.peer.key, None)
        if channel.purpose is Purpose.CONTROL:
            # Not from inside whatever ended it: a service may be in the middle of sending.
            asyncio.get_running_loop().call_soon(self._tell_lost, channel)

    def _tell_lost(self, channel: Channel) -> None:
        self.on_lost(channel)


class _Attempts:
    """Tries addresses, each with a head start before the next (RFC 8305); the first success counts."""

    def __init__(self, host: Host, attempt: Callable[[Address], Awaitable[_Proven]]) -> None:
        self._host = host
        self._attempt = attempt
        self._scope = TaskScope("dial")
        self._winner: _Proven | None = None
        self._errors: list[P2pcError] = []
        self._running = 0
        self._changed = asyncio.Event()

    async def first_of(self, addresses: Sequence[Address]) -> _Proven:
        """Return the first that succeeds.  Cancelled: all attempts are ended.

        Raises:
            P2pcError: the most telling of the errors when all failed.
        """
        try:
            for address in addresses:
                self._running += 1
                self._scope.spawn(self._try(address), "attempt")
                await self._wait(DIAL_STAGGER_S)
                if self._winner is not None:
                    break
            while self._winner is None and self._running:
                await self._wait(None)
            await self._scope.close()
        except BaseException:  # tidied up after, and raised again
            await self._scope.close()
            if self._winner is not None:
                self._winner.stream.abort()
            raise
        if self._winner is not None:
            return self._winner
        other = [error for error in self._errors if not isinstance(error, ChannelLost)]
        raise (other or self._errors or [ChannelLost("no address led to the node")])[0]

    async def _wait(self, limit_s: float | None) -> None:
        """Wait for the end of an attempt."""
        self._changed.clear()
        try:
            async with self._host.clock.timeout(limit_s):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _try(self, address: Address) -> None:
        try:
            proven = await self._attempt(address)
        except P2pcError as error:
            self._errors.append(error)
        else:
            if self._winner is None:
                self._winner = proven
            else:
                proven.stream.abort()
        finally:
            self._running -= 1
            self._changed.set()


def _write(stream: ByteStream, message_type: MessageType, body: Any) -> None:
    stream.write(frame(encode_message(message_type, 0, body)))


def _expect(data: bytes, expected: MessageType) -> Any:
    """The body of the awaited handshake message.

    Raises:
        TrustError, VersionMismatch, ChannelLost: the other side refused, and says why.
        RemoteProtocolError: anything else came.
    """
    message_type, _ = peek(data)
    body = decode_body(data)
    if message_type == MessageType.ERROR:
        refusal = read_error(body)
        if refusal.code == _BUSY:
            raise ChannelLost(refusal.what, refusal.why, code=_BUSY)
        kind = VersionMismatch if refusal.code == VersionMismatch.default_code else TrustError
        raise kind(refusal.what, refusal.why, code=refusal.code)
    if message_type != expected:
        raise RemoteProtocolError("an unexpected message in the handshake")
    return body


def _stranger(key: bytes, hello: dict[str, Any]) -> PeerInfo:
    """A peer about whom nothing but its key is known."""
    name = hello.get("name")
    if not isinstance(name, str) or len(name) > NODE_NAME_CHARS_MAX or not name.isprintable():
        raise RemoteProtocolError("not a name")
    return PeerInfo(key=key, installation=key, name=name, hello=hello)


def _register(used: dict[int, T], message_type: int, use: T) -> None:
    message_type = int(message_type)
    if message_type < SERVICE_TYPE_MIN:
        raise LocalProtocolError(f"message type {message_type} belongs to transport")
    if message_type in used:
        raise LocalProtocolError(f"message type {message_type} has a receiver already")
    used[message_type] = use


def _ignore(channel: Channel) -> None:
    """Nobody listens."""
