"""The members of a group that this node knows, under the group's log.

Pure: the time comes with the call.  Bound: ROSTER_MAX members; the one that was learned longest ago goes, of
those for whom nobody vouches if there are any.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from p2pcompute.errors import RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.limits import ADMIT_CHAIN_MAX, ADMIT_RENEW_S_MAX, ROSTER_MAX, ROSTER_SHARED_MAX
from p2pcompute.trust.groups import Group, Membership, check_chain, steps_of
from p2pcompute.trust.log import CLOSED, Added, GroupLog, LogEntry
from p2pcompute.trust.log_file import KeptLog

Chain = tuple[bytes, ...]


class Roster:
    """Who is known to be a member, by what chain, and the log that says who was removed."""

    def __init__(self, crypto: Crypto, group: Group, *, own: bytes = b"") -> None:
        """`own`: the installation that keeps this; it never goes."""
        self._own = own
        self._drawn: tuple[int, list[bytes]] | None = None
        """How many members were drawn last, and which; None: others may be known now."""
        self._crypto = crypto
        self._group_id = group.group_id
        self._root = group.chain[0]
        """The founder's entry, with which every chain begins: one object for all of them."""
        self.log = GroupLog(crypto, group)
        self._known: dict[bytes, tuple[Chain, Membership]] = {}
        self._digest = b""
        """Of what is known; empty: it has changed."""
        self._is_stale = False
        """The log has grown since what is in `_known` was checked."""
        self._is_large = False
        """There are more members than tell one another of all others, known here or not."""
        self._over: dict[bytes, None] = {}
        """Strangers that were in the group while it was open; at most ROSTER_MAX."""

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._known)

    def __contains__(self, installation: object) -> bool:
        return installation in self._known

    def get(self, installation: bytes) -> Membership | None:
        known = self._known.get(installation)
        return None if known is None else known[1]

    def chain_of(self, installation: bytes) -> Chain | None:
        known = self._known.get(installation)
        return None if known is None else known[0]

    # --- learning ---------------------------------------------------------------------------------

    def check(self, installation: bytes, chain: Sequence[bytes], wall: float) -> Membership:
        """Return what an installation is that shows this chain; one that was checked before costs nothing.

        Raises:
            TrustError: it is no member, or was removed.
            RemoteProtocolError: malformed.
        """
        known = self._known.get(installation)
        if known is not None and known[0] == tuple(chain) and known[1].expires > wall and not self._is_stale:
            return known[1]
        member = self._check(installation, chain, wall)
        self._keep(installation, tuple(chain), member)
        return member

    def _check(self, installation: bytes, chain: Sequence[bytes], wall: float, ended_s_max: float = 0.0) -> Membership:
        return check_chain(
            self._crypto,
            chain,
            group_id=self._group_id,
            subject=installation,
            wall=wall,
            ended_s_max=ended_s_max,
            log=self.log,
        )

    def _keep(self, installation: bytes, chain: Chain, member: Membership) -> None:
        self._digest = b""
        known = self._known.pop(installation, None)
        self._known[installation] = ((self._root, *chain[1:]) if chain[0] == self._root else chain, member)
        if known is None or known[1].is_stranger is not member.is_stranger:
            self._drawn = None
        if len(self._known) > ROSTER_MAX:
            others = [key for key in self._known if key != self._own]
            del self._known[next((key for key in others if self._known[key][1].is_stranger), others[0])]

    def learn(self, chain: Any, wall: float, *, is_asked: bool = False) -> bytes | None:
        """Take the chain of a member from somebody else; returns whose it is when it is worth more than the known one.

        That is one that has not ended, of no stranger, with more roles, or newer.  So nobody who may invite can make
        others believe that a member may do less: only the log says that.  In a large group only those are learned that
        were asked for.

        Raises:
            TrustError: it makes nobody a member.
            RemoteProtocolError: malformed.
        """
        if not isinstance(chain, list | tuple) or not 0 < len(chain) <= ADMIT_CHAIN_MAX:
            raise RemoteProtocolError("not a chain of admit entries")
        subject = steps_of(self._crypto, chain, group_id=self._group_id)[-1].subject
        known = self._known.get(subject)
        if known is not None and known[0] == tuple(chain):
            return None
        if known is None and not is_asked and (self._is_large or len(self._known) >= ROSTER_SHARED_MAX):
            return None
        member = self._check(subject, chain, wall, ADMIT_RENEW_S_MAX)
        if known is not None and _worth(*known, wall) >= _worth(tuple(chain), member, wall):
            return None
        self._keep(subject, tuple(chain), member)
        return subject

    def replace(self, installation: bytes, chain: Sequence[bytes], wall: float) -> None:
        """Know a member by this chain from now on.

        Raises:
            TrustError: it makes it no member.
        """
        self._keep(installation, tuple(chain), self._check(installation, chain, wall))

    def add(self, entry: Any, wall: float) -> Added:
        """Take in an entry of the log; `reassess` then says what follows.

        Raises:
            RemoteProtocolError: as `GroupLog.add`.
        """
        added = self.log.add(entry, wall=wall)
        if added is Added.NEW:
            self._is_stale, self._digest = True, b""
        return added

    def reassess(self, wall: float) -> None:
        """Look at all members again after the log has grown; who was removed is known no longer."""
        self._is_stale, self._digest, self._drawn = False, b"", None
        for installation, (chain, _member) in list(self._known.items()):
            try:
                self._known[installation] = (chain, self._check(installation, chain, wall, ADMIT_RENEW_S_MAX))
            except TrustError as error:
                del self._known[installation]
                if error.code == CLOSED:
                    self._over[installation] = None
        if self.log.policy().is_open:
            self._over.clear()
        for installation in list(self._over)[: max(0, len(self._over) - ROSTER_MAX)]:
            del self._over[installation]

    def is_over(self, installation: bytes) -> bool:
        """Whether an installation is among `over`."""
        return installation in self._over and installation not in self._known

    @property
    def over(self) -> list[bytes]:
        """Strangers of the time when the group was open, as far as they were known here, and are in it no longer."""
        return list(filter(self.is_over, self._over))

    def removed(self) -> dict[bytes, LogEntry]:
        """Return those that were removed and not invited again, as far as is known, and by which entry."""
        return {key: entry for key, entry in self.log.removals().items() if key not in self._known}

    def signed_by(self, installation: bytes) -> list[bytes]:
        """Return the digests of all known admissions that an installation has signed."""
        found: dict[bytes, None] = {}
        for chain, _member in self._known.values():
            for step in steps_of(self._crypto, chain, group_id=self._group_id):
                if step.signer == installation and step.subject != installation:
                    found[step.digest] = None
        return list(found)

    def drawn(self, count: int) -> list[bytes]:
        """Return at most so many members, no strangers, whose hashes with the group's id are smallest: all who know the
        same members draw the same ones."""
        if self._drawn is None or self._drawn[0] != count:
            members = (key for key, (_chain, member) in self._known.items() if not member.is_stranger)
            places = ((hashlib.sha256(self._group_id + key).digest(), key) for key in members)
            self._drawn = count, [key for _place, key in heapq.nsmallest(count, places)]
        return self._drawn[1]

    # --- sharing ----------------------------------------------------------------------------------

    @property
    def is_shared(self) -> bool:
        """Whether members tell one another of all others: in a large group each knows those that it has met."""
        return len(self._known) <= ROSTER_SHARED_MAX and not self._is_large

    def note_size(self, count: int) -> None:
        """Be told how many members there are, as far as that can be seen.  It is a large group from ROSTER_SHARED_MAX
        on, and a small one again at half of that."""
        is_large = count > (ROSTER_SHARED_MAX // 2 if self._is_large else ROSTER_SHARED_MAX)
        if is_large is not self._is_large:
            self._is_large, self._digest = is_large, b""

    @property
    def digest(self) -> bytes:
        """16 bytes that are the same where the same is known: the log's digest, and one of the members as far as they
        are shared."""
        if not self._digest:
            members = hashlib.sha256(b"".join(sorted(self.marks()))).digest()
            self._digest = self.log.digest + members[:8]
        return self._digest

    def marks(self) -> list[bytes]:
        """Return 16 bytes for each member: whose chain, and which."""
        if not self.is_shared:
            return []
        return [_mark(installation, chain[-1]) for installation, (chain, _member) in self._known.items()]

    def missing_of(self, marks: Collection[bytes], *, bytes_max: int) -> list[Chain]:
        """Return the chains that are not among `marks`, as many as fit."""
        if not self.is_shared:
            return []
        theirs = set(marks)
        found = []
        for mark, (chain, _member) in zip(self.marks(), self._known.values(), strict=True):
            if mark not in theirs:
                bytes_max -= sum(map(len, chain))
                if bytes_max < 0:
                    break
                found.append(chain)
        return found

    # --- keeping ----------------------------------------------------------------------------------

    def kept(self) -> KeptLog:
        chains = [chain for chain, _member in self._known.values()][-ROSTER_SHARED_MAX:]
        return KeptLog([entry.wire for entry in self.log], chains)

    def restore(self, kept: KeptLog, wall: float) -> None:
        """Take up what was kept; what does not hold any more is left out."""
        self._digest = b""
        _each(lambda entry: self.log.add(entry, wall=wall), kept.entries)
        _each(lambda chain: self.learn(chain, wall), kept.chains)


@lru_cache(maxsize=2 * ROSTER_SHARED_MAX)
def _mark(installation: bytes, admission: bytes) -> bytes:
    """Whose chain, and which."""
    return installation[:8] + hashlib.sha256(admission).digest()[:8]


def _worth(chain: Chain, member: Membership, wall: float) -> tuple[bool, bool, int, int, float, bytes]:
    return member.expires > wall, not member.is_stranger, len(member.roles), -member.rank, member.issued, chain[-1]


def _each(take: Any, items: Iterable[Any]) -> None:
    for item in items:
        try:
            take(item)
        except (RemoteProtocolError, TrustError):
            continue
