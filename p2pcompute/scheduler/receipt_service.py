"""Receipts, performed: written before they are sent, so that no later one says less, and kept when they come."""

from __future__ import annotations

from typing import Any

from p2pcompute.errors import RemoteProtocolError, StoreError
from p2pcompute.host.interfaces import Host
from p2pcompute.host.tasks import TaskScope
from p2pcompute.identity.keys import Identity
from p2pcompute.scheduler.messages import Message, parse_receipt
from p2pcompute.scheduler.receipts import Receipts, open_receipt, seal_receipt
from p2pcompute.store.journal import Journal
from p2pcompute.transport.channels import Channel, Channels


class ReceiptService:
    """Sends and keeps the receipts of one node."""

    def __init__(
        self, host: Host, identity: Identity, channels: Channels, journal: Journal | None, scope: TaskScope
    ) -> None:
        """Args:
        journal: None for a node that keeps nothing: it gives receipts, and forgets those that it gets.
        """
        self._host = host
        self._identity = identity
        self._channels = channels
        self._journal = journal
        self._scope = scope
        self.core = Receipts(identity.installation)
        self._is_telling = False
        channels.on_message(Message.RECEIPT, self._on_receipt)

    async def recover(self) -> None:
        """Read what earlier lives knew."""
        if self._journal is None:
            return
        async for name, value in self._journal.receipts():
            if isinstance(value, bytes):
                self.core.restore_given(open_receipt(self._host.crypto, value), value)
            else:
                self.core.restore_taken(name, *value)

    def tick(self, now: float) -> None:
        """Tell those whose receipts are due."""
        if self.core.is_due and not self._is_telling:
            due = list(self.core.due(now))
            if due:
                self._is_telling = True
                self._scope.spawn(self._tell(due), "receipts")

    async def _tell(self, due: list[tuple[bytes, int, int]]) -> None:
        try:
            if self._journal is not None:
                await self._host.store.commit([self._journal.taken_write(*one) for one in due])
        except StoreError:
            return  # the sums are larger next time
        finally:
            self._is_telling = False
        at_ms = int(self._host.clock.wall() * 1000)
        raws = {one[0]: seal_receipt(self._identity, *one, at_ms) for one in due}
        for channel in self._channels.all():
            raw = raws.get(channel.peer.installation)
            if raw is not None:
                channel.send(Message.RECEIPT, [raw])

    def _on_receipt(self, channel: Channel, body: Any) -> None:
        try:
            raw = parse_receipt(body)
        except RemoteProtocolError:
            self.core.refused_count += 1
            raise
        receipt = self.core.take(self._host.crypto, raw, channel.peer.installation)
        if self._journal is not None:
            self._scope.spawn(self._keep(self._journal, receipt.issuer, raw), "receipt")

    async def _keep(self, journal: Journal, issuer: bytes, raw: bytes) -> None:
        try:
            await self._host.store.commit([journal.given_write(issuer, raw)])
        except StoreError:
            return  # the next one says all that this one said
