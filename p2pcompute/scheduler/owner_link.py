"""What a worker knows of an owner it works for, and what is on its way there.  Data only."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from p2pcompute.host.interfaces import Address, BlobRef
from p2pcompute.scheduler.books import GrantedTask


@dataclass(slots=True, eq=False)
class Finished:
    """A result on its way."""

    job_id: bytes
    claim: Sequence[Any]
    outcome: bytes
    born: float
    blobs: Sequence[BlobRef] = ()
    is_on_disk: bool = False
    is_replaced: bool = False
    """The owner did not understand it; what is sent now says so."""
    is_let_go: bool = False
    """Its bytes are not counted and its blobs not pinned any more."""


@dataclass(slots=True)
class Move:
    """Tasks that came from another worker and whose owner does not know it yet."""

    moved_from: bytes
    job_id: bytes
    tasks: list[GrantedTask]


@dataclass(slots=True)
class OwnerLink:
    """What this node knows of an owner it works for."""

    key: bytes
    addresses: list[Address] = field(default_factory=list)
    results: deque[Finished] = field(default_factory=deque)
    is_sending: bool = False
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    """The owner has been heard of: worth a try at once."""
    alone_count: int = 0
    """So many results are sent one by one, because the owner refused a message with all of them."""
    pace_s: float = 0.0
    """Least time between two messages with results while more are to come: an owner of very many workers wants that."""
    sent_at: float = 0.0
    located_at: float = -inf
    """When the group was asked last where the owner is."""
    heartbeat_due: float = 0.0
    is_telling_printed: bool = False
    is_beating: bool = False
    moves: list[Move] = field(default_factory=list)
    is_registering: bool = False

    @property
    def has_unkept(self) -> bool:
        """Whether the youngest result is only in memory; older ones are written with it, or before."""
        return bool(self.results) and not self.results[-1].is_on_disk
