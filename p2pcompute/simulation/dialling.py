"""How streams come to be: dials."""

from __future__ import annotations

import zlib
from asyncio import CancelledError, Future
from collections.abc import Callable
from typing import Any, Final

from p2pcompute.errors import ChannelLost
from p2pcompute.host.interfaces import Address
from p2pcompute.simulation.machines import Machine, Plug, SimListener
from p2pcompute.simulation.network import Network
from p2pcompute.simulation.streams import RETRANSMIT_S, SimStream, retransmission_s
from p2pcompute.simulation.trace import Kind

CONNECT_RETRANSMIT_S: Final = 1.0
"""Timeout of a lost connection request."""


class Dial:
    """One attempt to connect.

    Its steps are events: connection request, preamble and first flight of TLS, ready at the dialler, ready at
    the listener.  In round trips from the start: 0.5, 1.5, 2, 2.5, as with TCP and TLS 1.3.
    """

    def __init__(self, network: Network, net: Plug, address: Address, preamble: bytes) -> None:
        self._network = network
        self._net = net
        self._address = address
        self._preamble = preamble
        self._future: Future[SimStream] = network.loop.create_future()
        machine = network.find(net.machine, address.host)
        self._machine = machine
        if machine is not None:
            local = "127.0.0.1" if address.host.startswith("127.") else net.machine.address_seen_by(machine)
            self._source = Address(local, net.machine.take_port(0, taken={}))
            self._after(net.machine, machine, self._request, timeout_s=CONNECT_RETRANSMIT_S)

    async def wait(self, timeout_s: float) -> SimStream:
        """Return the stream when it is ready.

        Raises:
            ChannelLost: refused, not admitted, or not ready in time.
        """
        timer = self._network.loop.call_later(timeout_s, self._expire)
        try:
            return await self._future
        except CancelledError:
            if self._future.done() and not self._future.cancelled() and self._future.exception() is None:
                self._future.result().abort()
            raise
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self._refuse(f"no answer from {self._address}")

    def _refuse(self, what: str) -> None:
        if not self._future.done() and not self._net.is_dead:
            self._future.set_exception(ChannelLost(what))

    def _after(
        self,
        sender: Machine,
        receiver: Machine,
        step: Callable[[Any], None],
        argument: Any = None,
        *,
        timeout_s: float = RETRANSMIT_S,
    ) -> None:
        """Do the next step one packet later, unless the pair is cut."""
        network = self._network
        if network.is_cut(sender, receiver):
            return
        late_s = retransmission_s(network, sender, receiver, 0, timeout_s=timeout_s)
        network.loop.post(network.loop.time() + network.delay_s(sender, receiver) + late_s, step, argument)

    def _listener(self, machine: Machine) -> SimListener | None:
        """Who listens at the address, or None after refusing.  A machine without power does not even refuse."""
        if machine.is_silent or machine.is_unplugged:
            return None
        listener = machine.listeners.get(self._address.port)
        if listener is None or (listener.is_loopback_only and machine is not self._net.machine):
            self._network.counters.streams_refused += 1
            self._after(machine, self._net.machine, self._refuse, f"{self._address} refused the connection")
            return None
        return listener

    def _request(self, _: Any) -> None:
        machine = self._machine
        assert machine is not None
        if self._listener(machine) is not None:
            # The confirmation goes back and the preamble comes: one round trip, as one event.
            back = self._network.delay_s(machine, self._net.machine)
            self._network.loop.post(self._network.loop.time() + back, self._send_preamble, machine)

    def _send_preamble(self, machine: Machine) -> None:
        if not self._future.done() and not self._net.is_dead:
            self._after(self._net.machine, machine, self._knock)

    def _knock(self, _: Any) -> None:
        machine = self._machine
        assert machine is not None
        listener = self._listener(machine)
        if listener is None:
            return
        if not listener.net.context.run(listener.admit, self._preamble, self._source):
            self._network.counters.streams_not_admitted += 1
            self._after(machine, self._net.machine, self._refuse, f"{self._address} closed the connection")
            return
        self._work(machine, self._greet, listener)

    def _work(self, machine: Machine, step: Callable[[Any], None], argument: Any) -> None:
        """Do the next step when the machine has done its part of the handshake."""
        network = self._network
        if network.settings.handshake_s:
            network.loop.post(network.occupy(machine, network.settings.handshake_s), step, argument)
        else:
            step(argument)

    def _greet(self, listener: SimListener) -> None:
        self._after(listener.net.machine, self._net.machine, self._greeted, listener)

    def _greeted(self, listener: SimListener) -> None:
        self._work(self._net.machine, self._ready, listener)

    def _ready(self, listener: SimListener) -> None:
        if self._future.done() or self._net.is_dead or listener.net.is_dead:
            return
        network = self._network
        now = network.loop.time()
        accepted_at = now + network.delay_s(self._net.machine, listener.net.machine)
        dialler = SimStream(network, self._net, self._address, listener.binding)
        acceptor = SimStream(network, listener.net, self._source, listener.binding)
        SimStream.connect(dialler, acceptor, accepted_at=accepted_at, ready_at=now)
        self._future.set_result(dialler)
        network.loop.post(accepted_at, self._accept, (listener, acceptor))

    def _accept(self, pair: tuple[SimListener, SimStream]) -> None:
        listener, stream = pair
        if listener.net.is_dead:
            return
        if listener.is_stopped:
            stream.abort()
            return
        network = self._network
        network.counters.streams_opened += 1
        network.loop.trace.record(network.loop.time(), listener.net.number, Kind.OPENED, zlib.crc32(self._preamble))
        # Not called from here: nothing may run on a host that sleeps.
        network.loop.call_soon(listener.accept, stream, self._preamble, context=listener.net.context)
