"""How an owner tells others that it has work: hints to steal, to those that may run it.

Offers cost a message each, so an owner makes few: to those of which is heard that they fit, as many as have the slots.
When all that are known have not, further nodes are looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pcompute.host.interfaces import Address, Host
from p2pcompute.limits import (
    DHT_K,
    OFFER_AGAIN_S,
    OFFER_S_MIN,
    OFFER_SLOTS_PER_TASK,
    OFFERS_MIN,
    SEEK_AGAIN_S,
)
from p2pcompute.scheduler.messages import Message
from p2pcompute.scheduler.owner_service import OwnerService
from p2pcompute.scheduler.stealing import Fit, Parking
from p2pcompute.scheduler.thief_service import ThiefService
from p2pcompute.scheduler.worker_service import WorkerService
from p2pcompute.transport.channels import Channel, Channels

if TYPE_CHECKING:
    import random


@dataclass(slots=True)
class OfferCounters:
    """Counted over the life of a node."""

    offers_sent_count: int = 0
    looked_further_count: int = 0
    """Searches for nodes of any kind, because those that are known did not suffice."""


class Offers:
    """The offers of one node."""

    def __init__(
        self,
        host: Host,
        channels: Channels,
        rng: random.Random,
        owner: OwnerService,
        worker: WorkerService,
        thief: ThiefService,
        parking: Parking,
        peers: Mapping[bytes, Sequence[Address]],
    ) -> None:
        """Args: see `Scheduler`, of which this is a part."""
        self._host = host
        self._channels = channels
        self._rng = rng
        self._owner = owner
        self._worker = worker
        self._thief = thief
        self._parking = parking
        self._peers = peers
        self.counters = OfferCounters()
        self.look_further: Callable[[int], None] = lambda _count: None
        """Looks for so many nodes that are not known here, whatever they have, in the background."""
        self._told: dict[bytes, float] = {}
        """Peer → when it was made an offer last."""
        self._looked = -SEEK_AGAIN_S
        """When nodes that are not known here were looked for last."""

    @property
    def is_busy(self) -> bool:
        """Whether something is remembered that time ends."""
        return bool(self._told)

    def tick(self, now: float) -> None:
        """Forget what is over; in a large group make offers again of what nobody has taken."""
        self._told = {key: at for key, at in self._told.items() if now - at < OFFER_AGAIN_S}
        if (self._owner.core.has_ready or self._owner.core.has_overdue) and len(self._peers) > DHT_K:
            self.offer(OFFER_AGAIN_S)

    def peer_gone(self, key: bytes) -> None:
        self._told.pop(key, None)

    def tell(self, channel: Channel) -> None:
        """Make an offer to a peer."""
        self.counters.offers_sent_count += 1
        channel.send(Message.OFFER, [])

    def offer(self, pause_s: float = OFFER_S_MIN) -> None:
        """Hint to peers that may run our tasks that there are some, at most every `pause_s` to each.

        All of up to OFFERS_MIN peers are told, of more those of which is heard that they fit, with an open channel
        first, until they have slots enough.  When all that are known have not, others are looked for.
        """
        demands = self._owner.core.demands()
        if not demands:
            return
        now = self._host.clock.now()
        slots = [self._own_slots(fit) for fit, _count in demands]
        told = 0
        for key in self._near_first():
            fitting = [True if fit is None else fit.is_candidate(key) for fit, _count in demands]
            if not any(fits is not False for fits in fitting) or (told >= OFFERS_MIN and not any(fitting)):
                continue
            if told >= OFFERS_MIN and all(
                have >= OFFER_SLOTS_PER_TASK * count for have, (_fit, count) in zip(slots, demands, strict=True)
            ):
                return
            told += 1
            channel = self._channels.get(key)
            has = 1 if channel is None else channel.peer.hello.get("slots")
            slots = [
                have + (has if type(has) is int else 1) * (fits is True)
                for have, fits in zip(slots, fitting, strict=True)
            ]
            if key in self._parking or now - self._told.get(key, -pause_s) < pause_s:
                continue
            if channel is None:
                self._thief.open_channel(key)
                continue
            self._told[key] = now
            self.tell(channel)
        missing = 0
        for have, (fit, count) in zip(slots, demands, strict=True):
            if fit is not None and have < count:
                fit.look_further()
            elif have < count:
                missing = max(missing, count - have)
        if missing and len(self._peers) > DHT_K and now - self._looked >= SEEK_AGAIN_S:
            self._looked = now
            self.counters.looked_further_count += 1
            self.look_further(missing)

    def _own_slots(self, fit: Fit | None) -> int:
        """Slots of this node for a job."""
        return self._worker.core.slot_count if fit is None or fit.known_here() is not False else 0

    def _near_first(self) -> list[bytes]:
        """Return the peers, in a large group those with an open channel first, others at random."""
        peers = list(self._peers)
        if len(peers) <= OFFERS_MIN:
            return peers
        self._rng.shuffle(peers)
        return sorted(peers, key=lambda key: self._channels.get(key) is None)
