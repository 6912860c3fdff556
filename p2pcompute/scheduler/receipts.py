"""Signed receipts: how much CPU time a node has given to others, and what others have given to it.

An owner counts the CPU time of accepted results by the installation that computed them, and tells each of them the sum
so far, signed, at most every RECEIPT_S.  Sums only grow, so the newest receipt of an issuer says all that earlier ones
said.  A worker keeps the newest of each; anybody can check it.

A receipt says what the worker measured and the owner accepted: it proves that somebody vouches for it, not that it is
true, and counts for no more than its issuer does.

Pure.  Bound: RECEIPTS_MAX issuers and as many workers; of more, the one not heard of for longest is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.identity.keys import Identity, check_delegation
from p2pcompute.ids import PUBLIC_KEY_BYTES
from p2pcompute.wire.envelope import open_envelope
from p2pcompute.wire.fields import named

RECEIPT_CONTENT_TYPE: Final = "p2pc/receipt"
RECEIPT_S: Final = 60.0
RECEIPTS_MAX: Final = 4096
_INT_MAX: Final = 1 << 62
_KEYS: Final = frozenset({"worker", "cpu_ms", "tasks", "at", "delegation"})


@dataclass(frozen=True, slots=True)
class Receipt:
    """The sum of what one installation has given to another so far."""

    issuer: bytes
    """Installation for which the work was done."""
    worker: bytes
    """Installation that did it."""
    cpu_ms: int
    tasks: int
    at_ms: int
    """When it was signed, Unix milliseconds."""


def seal_receipt(identity: Identity, worker: bytes, cpu_ms: int, tasks: int, at_ms: int) -> bytes:
    """Return a signed receipt of this node."""
    payload = {"worker": worker, "cpu_ms": cpu_ms, "tasks": tasks, "at": at_ms, "delegation": identity.delegation}
    return identity.sign_envelope(RECEIPT_CONTENT_TYPE, payload)


def open_receipt(crypto: Crypto, raw: bytes) -> Receipt:
    """Return a verified receipt, whoever it is for.

    Raises:
        RemoteProtocolError: forged or malformed.
    """
    envelope = open_envelope(crypto, raw, RECEIPT_CONTENT_TYPE)
    body: Any = named(envelope.payload, _KEYS, "receipt")
    numbers = [body["cpu_ms"], body["tasks"], body["at"]]
    if not all(type(number) is int and 0 <= number <= _INT_MAX for number in numbers):
        raise RemoteProtocolError("not a receipt: numbers")
    worker, delegation, issuer = body["worker"], body["delegation"], envelope.signer
    if not (isinstance(worker, bytes) and len(worker) == PUBLIC_KEY_BYTES):
        raise RemoteProtocolError("not a receipt: worker")
    if delegation is not None:
        if not isinstance(delegation, bytes):
            raise RemoteProtocolError("not a receipt: delegation")
        key, issuer, _roles = check_delegation(crypto, delegation, wall=body["at"] / 1000)
        if key != envelope.signer:
            raise RemoteProtocolError("a receipt signed by another key than its delegation names")
    return Receipt(issuer, worker, *numbers)


@dataclass(slots=True)
class _Taken:
    """What an installation has given to this node."""

    cpu_ms: int = 0
    tasks: int = 0
    told_tasks: int = 0
    told_at: float = -RECEIPT_S


class Receipts:
    """The books of one node."""

    def __init__(self, installation: bytes) -> None:
        self._own = installation
        self.given: dict[bytes, tuple[Receipt, bytes]] = {}
        """Issuer → its newest receipt, and the envelope that proves it."""
        self._taken: dict[bytes, _Taken] = {}
        self.refused_count = 0
        """Receipts that were forged, for somebody else, or said less than an earlier one."""

    @property
    def given_s(self) -> float:
        """CPU seconds that others have signed for."""
        return sum(receipt.cpu_ms for receipt, _raw in self.given.values()) / 1000

    @property
    def taken_s(self) -> float:
        """CPU seconds that others have given."""
        return sum(one.cpu_ms for one in self._taken.values()) / 1000

    def worked(self, worker: bytes, cpu_s: float) -> None:
        """A result of another installation was accepted."""
        if worker == self._own:
            return
        one = self._taken.pop(worker, None) or _Taken()
        one.cpu_ms += round(max(0.0, cpu_s) * 1000)
        one.tasks += 1
        self._taken[worker] = one
        if len(self._taken) > RECEIPTS_MAX:
            del self._taken[next(iter(self._taken))]

    def due(self, now: float) -> Iterator[tuple[bytes, int, int]]:
        """Yield (worker, CPU milliseconds, tasks) of those that should get a receipt now, and note that they do."""
        for worker, one in self._taken.items():
            if one.tasks > one.told_tasks and now - one.told_at >= RECEIPT_S:
                one.told_tasks, one.told_at = one.tasks, now
                yield worker, one.cpu_ms, one.tasks

    @property
    def is_due(self) -> bool:
        """Whether anybody waits for a receipt."""
        return any(one.tasks > one.told_tasks for one in self._taken.values())

    def take(self, crypto: Crypto, raw: bytes, issuer: bytes) -> Receipt:
        """Keep a receipt.

        Args:
            issuer: installation at the other end of the channel.

        Raises:
            RemoteProtocolError: it is forged, somebody else's, or says less than an earlier one; counted.
        """
        try:
            receipt = open_receipt(crypto, raw)
            if receipt.issuer != issuer:
                raise RemoteProtocolError("a receipt of somebody else")
            if receipt.worker != self._own:
                raise RemoteProtocolError("a receipt for somebody else")
            before = self.given.get(issuer)
            if before is not None and (receipt.cpu_ms < before[0].cpu_ms or receipt.tasks < before[0].tasks):
                raise RemoteProtocolError("a receipt that takes something back")
        except RemoteProtocolError:
            self.refused_count += 1
            raise
        self.restore_given(receipt, raw)
        return receipt

    def restore_given(self, receipt: Receipt, raw: bytes) -> None:
        """Know a receipt that is kept."""
        self.given.pop(receipt.issuer, None)
        self.given[receipt.issuer] = receipt, raw
        if len(self.given) > RECEIPTS_MAX:
            del self.given[next(iter(self.given))]

    def restore_taken(self, worker: bytes, cpu_ms: int, tasks: int) -> None:
        """Know a sum that was told in an earlier life: the next receipt says no less."""
        self._taken[worker] = _Taken(cpu_ms, tasks, tasks)
