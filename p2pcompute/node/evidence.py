"""Proofs that a member has lied, passed on among the members of a group.

A proof is an evidence file (`scheduler.bundles`): two different results that one node signed under one lease.  It
stands for itself, so it does not matter from whom it comes: who reads it bans its subject.  Nothing else that others
say about a node's results is passed on or counted: not what they found wrong, nor whom they banned.

Who has a proof tells it all who are connected; those to whom it was new pass it on.  In its hello a node says of whom
it has proofs, as a digest, so that who was away asks.  In a group where nobody was found out nothing is sent.

Source: DESIGN.md 10, rule 8.
Bounds: PROOFS_MAX proofs of PROOF_BYTES_MAX, PROOFS_BYTES_MAX in all, one for each installation that is a
member.  When they are full those about strangers make room, then the largest: one of PROOFS_BYTES_MAX / PROOFS_MAX
bytes always has room, whatever others have sent, and who hold the same proofs keep the same ones.  One without room
counts here, and is neither kept nor passed on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Final

from p2pcompute.errors import P2pcError, RemoteProtocolError, StoreError, TrustError
from p2pcompute.host.interfaces import Host
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import PROOF_BYTES_MAX, PROOFS_BYTES_MAX, PROOFS_MAX
from p2pcompute.node.membership import GroupCredentials
from p2pcompute.scheduler.bundles import check_evidence, find_equivocation
from p2pcompute.store.journal import Journal
from p2pcompute.transport.channels import Channel, Channels

PROOFS: Final = 82
"""request: [marks of those of whom proofs are there] → [[proof, …]] of others"""
PROOF: Final = 83
"""[proof]: this is new here"""
_META: Final = "evidence"
_MARK_BYTES: Final = 8
_ASK_S: Final = 10.0


class EvidenceExchange:
    """The proofs that this node has, and what it does about them."""

    def __init__(
        self,
        host: Host,
        credentials: GroupCredentials,
        channels: Channels,
        journal: Journal | None,
        scope: TaskScope,
        convict: Callable[[bytes], None],
    ) -> None:
        """Args:
        convict: gives an installation no more work, and takes back what rests on it.
        """
        self._host = host
        self._credentials = credentials
        self._channels = channels
        self._journal = journal
        self._scope = scope
        self._convict = convict
        self._proofs: dict[bytes, bytes] = {}
        """Installation → the proof."""
        self._bytes = 0
        self.refused_count = 0
        """Proofs that prove nothing, or for which there was no room."""
        channels.on_request(PROOFS, self._on_asked)
        channels.on_message(PROOF, self._on_told)

    @property
    def digest(self) -> bytes:
        """8 bytes that are the same where proofs of the same installations are held; empty without any."""
        return hashlib.sha256(b"".join(sorted(self._proofs))).digest()[:_MARK_BYTES] if self._proofs else b""

    def get(self, installation: bytes) -> bytes:
        """Return the proof about an installation; empty: there is none."""
        return self._proofs.get(installation, b"")

    async def restore(self) -> None:
        """Take up what was kept; it is checked again."""
        kept = None if self._journal is None else await self._journal.meta(_META)
        if isinstance(kept, list):
            for proof in kept:
                try:
                    self._add(*self._read(proof))
                except RemoteProtocolError:
                    continue

    def _read(self, proof: Any) -> tuple[bytes, bytes]:
        """Return (installation, proof) of one that proves something.

        Raises:
            RemoteProtocolError: it does not.
        """
        if not isinstance(proof, bytes) or len(proof) > PROOF_BYTES_MAX:
            self.refused_count += 1
            raise RemoteProtocolError("not a proof")
        try:
            signer = check_evidence(self._host.crypto, proof)
        except TrustError as error:
            self.refused_count += 1
            raise RemoteProtocolError(error.what, error.why) from error
        return self._credentials.installation_of(signer) or signer, proof

    def _add(self, installation: bytes, proof: bytes) -> bool:
        """Keep a proof; False: there is one already, or no room."""
        if installation in self._proofs:
            return False
        self._proofs[installation] = proof
        self._bytes += len(proof)
        while len(self._proofs) > PROOFS_MAX or self._bytes > PROOFS_BYTES_MAX:
            last = max(self._proofs, key=self._order)
            self._bytes -= len(self._proofs.pop(last))
            self.refused_count += 1
        return installation in self._proofs

    def _order(self, installation: bytes) -> tuple[bool, int, bytes]:
        """In what order proofs have room."""
        return self._credentials.is_stranger(installation), len(self._proofs[installation]), installation

    def _take(self, proof: Any, *, but: Channel | None = None) -> None:
        installation, proof = self._read(proof)
        credentials = self._credentials
        if installation == credentials.identity.installation or credentials.membership_of(installation) is None:
            return  # anybody can make a key that lies, and whoever is no member gets no work
        if installation in self._proofs:
            return
        is_kept = self._add(installation, proof)  # before the ban, for which a proof would be looked for
        self._convict(installation)
        if is_kept:
            for channel in self._channels.all():
                if channel is not but:
                    channel.send(PROOF, [proof])
            self._scope.spawn(self._keep(), "keep-evidence")

    async def _keep(self) -> None:
        if self._journal is not None:
            try:
                await self._host.store.commit([self._journal.meta_write(_META, list(self._proofs.values()))])
            except StoreError:
                return  # the others have it too

    # --- what was found here ----------------------------------------------------------------------

    async def prove(self, installation: bytes, job_ids: Iterable[bytes]) -> None:
        """Prove to the others that an installation has signed two results for one task of these jobs of ours."""
        journal = self._journal
        if journal is None:
            return
        for job_id in job_ids:
            raws = [raw async for raw in journal.facts(job_id)]
            for key in self._credentials.keys_of(installation):
                proof = find_equivocation(self._host.crypto, raws, key)
                if proof is not None and len(proof) <= PROOF_BYTES_MAX:
                    self._take(proof)
                    return

    # --- what others have -------------------------------------------------------------------------

    def channel_opened(self, channel: Channel) -> None:
        """Ask a peer that has proofs about others than this node."""
        theirs = channel.peer.hello.get("proofs")
        if isinstance(theirs, bytes) and theirs not in (b"", self.digest):
            self._scope.spawn(self._ask(channel), "ask-proofs")

    async def _ask(self, channel: Channel) -> None:
        try:
            answer = await channel.request(PROOFS, [[key[:_MARK_BYTES] for key in self._proofs]], timeout_s=_ASK_S)
            if not (isinstance(answer, list) and answer and isinstance(answer[0], list)):
                raise RemoteProtocolError("not proofs")
            for proof in answer[0][:PROOFS_MAX]:
                self._take(proof, but=channel)
        except (P2pcError, TimeoutError):
            return  # another one has them too

    async def _on_asked(self, _channel: Channel, body: Any) -> Any:
        match body:
            case [list(marks), *_] if len(marks) <= PROOFS_MAX:
                if not all(isinstance(mark, bytes) and len(mark) == _MARK_BYTES for mark in marks):
                    raise RemoteProtocolError("not marks of installations")
                return [[proof for key, proof in self._proofs.items() if key[:_MARK_BYTES] not in marks]]
        raise RemoteProtocolError("not a question about proofs")

    def _on_told(self, channel: Channel, body: Any) -> None:
        match body:
            case [bytes(proof), *_]:
                self._take(proof, but=channel)
            case _:
                raise RemoteProtocolError("not a proof")
