"""Performs one lookup, or walk of the index: asks whom the core names, tells it what came, keeps one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

from p2pcompute.dht.contacts import Contact
from p2pcompute.host.interfaces import Clock, Timer

Answer: TypeAlias = Callable[[Sequence[Contact] | None], None]
"""To be called once per ask: with the contacts in the peer's answer, or None when it did not answer."""


class Steps(Protocol):
    """A core that decides whom to ask: `Lookup` and `LevelWalk`."""

    def poll(self, now: float) -> Sequence[Contact]:
        """Return the contacts to ask now."""

    def on_answer(self, contact_id: bytes, heard: Sequence[Contact] = ()) -> None:
        """Take in the contacts in an answer."""

    def on_failure(self, contact_id: bytes) -> None:
        """Note that nothing will come."""

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""

    def deadline(self) -> float | None:
        """When to poll though nothing came."""

    def result(self) -> list[Contact]:
        """What it found."""


async def walk(lookup: Steps, clock: Clock, ask: Callable[[Contact, Answer], None]) -> list[Contact]:
    """Run a lookup to its end and return its result.  When cancelled, answers under way are ignored.

    Args:
        ask: asks one peer; may call its second argument at once.
    """
    step = _Walk(lookup, clock, ask)
    try:
        step.advance()
        await step.ended
    finally:
        step.stop()
    return lookup.result()


class _Walk:
    def __init__(self, lookup: Steps, clock: Clock, ask: Callable[[Contact, Answer], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lookup = lookup
        self._clock = clock
        self._ask = ask
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._is_advancing = False
        self._is_changed = False
        self._is_stopped = False

    def advance(self) -> None:
        if self._is_advancing or self._is_stopped:
            self._is_changed = True
            return
        self._is_advancing = self._is_changed = True
        try:
            while self._is_changed:
                self._is_changed = False  # unless a peer's answer comes while it is asked
                for contact in self._lookup.poll(self._clock.now()):
                    self._ask(contact, partial(self._on_answer, contact))
        finally:
            self._is_advancing = False
        if self._lookup.is_done:
            self._cancel_timer()
            if not self.ended.done():
                self.ended.set_result(None)
            return
        deadline = self._lookup.deadline()
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return  # a timer that comes too early is cheaper than a new one at each answer
        self._cancel_timer()
        self._timer_at = deadline
        self._timer = self._clock.call_later(max(0.0, deadline - self._clock.now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.advance()

    def stop(self) -> None:
        self._is_stopped = True
        self._cancel_timer()

    def _on_answer(self, contact: Contact, heard: Sequence[Contact] | None) -> None:
        if self._is_stopped:
            return
        if heard is None:
            self._lookup.on_failure(contact.id)
        else:
            self._lookup.on_answer(contact.id, heard)
        self.advance()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
