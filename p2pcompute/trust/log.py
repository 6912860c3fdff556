"""The log of a group: who was removed, who may do less than before, which network key is in use, what its policy is.

Admissions are not in it: a member shows its own (`groups`).  The log holds what its subject would not show: *limits*
(what an installation may still do; nothing at all when it is removed), *rotations* of the network key, and the
group's *policy*.  Each entry is signed by the founder or a member with the role admin, carries the chain that says so,
and names the entries that its signer knew (`after`).  So the log is a graph that only grows; two copies merge by union,
in any order.

What counts is the same for everybody who holds the same entries, whatever came first:

- Ranks: the founder; heirs whom he named; heirs whom those named, and so on; administrators; other members.  An
  entry can limit those of lower rank only, so no two entries can undo each other.
- The founder's entries always count, those of others unless one of higher rank has limited their signer and did not
  know them: then they were written afterwards, whatever their date says.
- A limit covers all admissions of its subject that were signed without knowing it.  One that names it, or a later
  entry, is a new invitation.
- Who was removed cannot invite afterwards with an earlier date: a limit names those admissions by its subject that stay
  good (`accepts`), all others are void, and with them what they led to.
- Of several rotations that do not know each other all keys are accepted, and all members use the same one.  Of several
  policies that do not know each other all hold.
- A stranger is in the group as long as its policy says that it is open (or nothing is known of the log yet).
- What this build does not understand of an entry has no effect here, and is counted (`not_understood`).

Pure: the time comes with the call.  Bounds: LOG_ENTRIES_MAX entries, GROUP_LOG_BYTES_MAX; further ones are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError, TrustError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.identity.keys import Identity, ordered_roles
from p2pcompute.ids import short_device_id
from p2pcompute.limits import (
    ADMIT_SKEW_S_MAX,
    GROUP_LOG_BYTES_MAX,
    LOG_ACCEPTS_MAX,
    LOG_ENTRIES_MAX,
    LOG_ENTRY_BYTES_MAX,
    LOG_FOUNDER_ENTRIES,
    LOG_HEADS_MAX,
    NODE_NAME_CHARS_MAX,
    REMOVALS_NOTED_MAX,
)
from p2pcompute.trust.groups import (
    ADMIN_RANK,
    FOUNDER_RANK,
    MEMBER_RANK,
    Admission,
    Group,
    Membership,
    check_chain,
    ranks_of,
    steps_of,
)
from p2pcompute.trust.log_entries import LOG_TYPE, SHORT_BYTES, LogEntry, id_of, parse_entry, removal_text
from p2pcompute.trust.policy import GroupPolicy, strictest
from p2pcompute.wire import envelope

__all__ = [
    "CLOSED",
    "LOG_TYPE",
    "REMOVED",
    "Added",
    "GroupLog",
    "LogEntry",
    "make_limit",
    "make_policy",
    "make_rotation",
]

REMOVED: Final = "removed"
"""Code of the refusal of an installation that was removed from the group."""
CLOSED: Final = "closed"
"""Code of the refusal of a stranger in a group that is open no longer."""
_DIGEST_BYTES: Final = 32
_NEW_INVITATION: Final = "a new invitation makes it a member again: p2pc invite"


class Added(Enum):
    """What became of an entry that somebody sent."""

    NEW = "new"
    KNOWN = "known"
    EARLIER_MISSING = "earlier missing"
    """It names entries that are not here."""
    FULL = "full"


class GroupLog:
    """What this node holds of the log of its group.  Satisfies `groups.Judge`."""

    def __init__(self, crypto: Crypto, group: Group) -> None:
        self._crypto = crypto
        self._group_id = group.group_id
        self._founder = group.founder
        self._entries: dict[bytes, LogEntry] = {}
        """By id, each after those that it names."""
        self._known: dict[bytes, int] = {}
        """Id → bits of the entry itself and of all before it; the n-th entry has bit n."""
        self._bit: dict[bytes, int] = {}
        self._by_subject: dict[bytes, list[LogEntry]] = {}
        self._void: dict[bytes, None] | None = {}
        """Entries that do not count; None: to be found out."""
        self._policy: GroupPolicy | None = None
        """What holds; None: to be found out."""
        self._beyond: list[LogEntry] | None = None
        """What counts and is not understood; None: to be found out."""
        self.bytes_count = 0
        self.refused_count = 0
        """Entries that were forged, not allowed, or too many."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[LogEntry]:
        """All entries, each after those that it names."""
        return iter(self._entries.values())

    def __contains__(self, entry_id: object) -> bool:
        return entry_id in self._entries

    @property
    def digest(self) -> bytes:
        """8 bytes that are the same where the same entries are held."""
        return hashlib.sha256(b"".join(sorted(self._entries))).digest()[:8]

    # --- taking in --------------------------------------------------------------------------------

    def add(self, wire: Any, *, wall: float) -> Added:
        """Take an entry in.

        Args:
            wire: as in `LogEntry.wire`.
            wall: Unix seconds.

        Raises:
            RemoteProtocolError: malformed, forged, or its signer may not make it.
        """
        try:
            entry_id = id_of(wire)
            if entry_id in self._entries:
                return Added.KNOWN
            entry = self._open(wire, wall)
        except (RemoteProtocolError, TrustError) as error:
            self.refused_count += 1
            raise error if isinstance(error, RemoteProtocolError) else RemoteProtocolError(error.what) from error
        if any(earlier not in self._entries for earlier in entry.after):
            return Added.EARLIER_MISSING
        size = len(entry.raw) + sum(map(len, entry.chain))
        kept_free = LOG_FOUNDER_ENTRIES if entry.rank == ADMIN_RANK else LOG_FOUNDER_ENTRIES // 2 if entry.rank else 0
        bytes_max = GROUP_LOG_BYTES_MAX - GROUP_LOG_BYTES_MAX * kept_free // LOG_ENTRIES_MAX
        if len(self._entries) >= LOG_ENTRIES_MAX - kept_free or self.bytes_count + size > bytes_max:
            self.refused_count += 1
            return Added.FULL
        self.bytes_count += size
        self._bit[entry.id] = 1 << len(self._entries)
        self._entries[entry.id] = entry
        self._known[entry.id] = self._bit[entry.id] | self._covered(entry.after)
        if entry.subject:
            self._by_subject.setdefault(entry.subject, []).append(entry)
        self._void = self._policy = self._beyond = None
        return Added.NEW

    def _open(self, wire: Any, wall: float) -> LogEntry:
        raw, chain = wire
        opened = envelope.open_envelope(self._crypto, raw, LOG_TYPE, bytes_max=LOG_ENTRY_BYTES_MAX)
        entry = parse_entry(raw, tuple(chain), opened.signer, opened.payload, self._group_id)
        if entry.issued > wall + ADMIT_SKEW_S_MAX:
            raise RemoteProtocolError("an entry from the future")
        signer = check_chain(
            self._crypto, chain, group_id=self._group_id, subject=entry.signer, wall=float(entry.issued)
        )
        if "admin" not in signer.roles:
            raise RemoteProtocolError("an entry of a member that may not make one")
        if entry.subject == self._founder:
            raise RemoteProtocolError("nobody limits the founder")
        return replace(entry, rank=signer.rank)

    # --- what counts ------------------------------------------------------------------------------

    def _covered(self, ids: Iterable[bytes]) -> int:
        """Return the bits of these entries and of all before them, as far as they are here."""
        bits = 0
        for entry_id in ids:
            bits |= self._known.get(entry_id, 0)
        return bits

    def _limits(self, step: Admission, *, below: int) -> Iterator[LogEntry]:
        """Yield the limits by those of a higher rank than this that cover an admission."""
        covered = -1
        for entry in self._by_subject.get(step.subject, ()):
            if entry.rank >= below or entry.id in self._voided():
                continue
            if covered < 0:
                covered = self._covered(step.after)
            if not covered & self._bit[entry.id]:
                yield entry

    def _all_limits(self, step: Admission, rank: int) -> list[LogEntry]:
        """Return the limits that count for an admission: who has a rank is limited by higher ones alone."""
        limits = list(self._limits(step, below=rank))
        if "admin" in _left(step, limits):
            return limits
        return list(self._limits(step, below=MEMBER_RANK))

    def _voided(self) -> dict[bytes, None]:
        """Return the entries that do not count.  Higher ranks alone decide about an entry, so this ends."""
        if self._void is None:
            self._void = {}
            for rank in sorted({entry.rank for entry in self._entries.values()} - {FOUNDER_RANK}):
                void = [entry.id for entry in self._entries.values() if entry.rank == rank and not self._counts(entry)]
                self._void.update(dict.fromkeys(void))
        return self._void

    def _counts(self, entry: LogEntry) -> bool:
        steps = steps_of(self._crypto, entry.chain, group_id=self._group_id)
        limits_of = [
            list(self._limits(step, below=min(rank, entry.rank)))
            for step, rank in zip(steps, ranks_of(steps), strict=True)
        ]
        for parent, limits, step in zip(steps, limits_of, steps[1:], strict=False):
            if _voids(parent, limits, step):
                return False
        return all("admin" in limit.roles or self._known[limit.id] & self._bit[entry.id] for limit in limits_of[-1])

    def roles_left(self, steps: Sequence[Admission]) -> tuple[str, ...]:
        if not self._entries:
            return _left(steps[-1], ())
        ranks = ranks_of(steps)
        for parent, rank, step in zip(steps, ranks, steps[1:], strict=False):
            if why := _voids(parent, self._all_limits(parent, rank), step):
                raise TrustError(f"refused: {why}", "", _NEW_INVITATION, code=REMOVED)
        last = steps[-1]
        limits = self._all_limits(last, ranks[-1])
        removal = next((limit for limit in limits if limit.is_removal), None)
        if removal is not None:
            raise TrustError(
                f"refused: this computer was removed from the group {removal_text(removal)}",
                "",
                _NEW_INVITATION,
                code=REMOVED,
            )
        if last.is_stranger and self._entries and not self.policy().is_open:
            raise TrustError(
                "refused: the group is open no longer, and nobody vouches for this computer",
                "",
                _NEW_INVITATION,
                code=CLOSED,
            )
        return _left(last, limits)

    # --- reading ----------------------------------------------------------------------------------

    def heads(self, subject: bytes = b"", *, policies: bool = False) -> tuple[bytes, ...]:
        """Return the last entries, at most LOG_HEADS_MAX: first those that know what is said of `subject`, or the
        policies that hold."""
        named = {earlier for entry in self._entries.values() for earlier in entry.after}
        heads = sorted(entry_id for entry_id in self._entries if entry_id not in named)
        if len(heads) <= LOG_HEADS_MAX:
            return tuple(heads)
        wanted = 0
        for entry in self.policies() if policies else self._by_subject.get(subject, ()):
            wanted |= self._bit[entry.id]
        heads.sort(key=lambda entry_id: (-(self._known[entry_id] & wanted).bit_count(), entry_id))
        return tuple(heads[:LOG_HEADS_MAX])

    def removals(self) -> dict[bytes, LogEntry]:
        """Return subject → the last removal that counts; the subject may have been invited again since."""
        return {
            entry.subject: entry
            for entry in self._entries.values()
            if entry.is_removal and entry.id not in self._voided()
        }

    def removals_of(self, subject: bytes) -> tuple[bytes, ...]:
        """Return the ids of the removals of an installation that count, at most REMOVALS_NOTED_MAX: the last ones,
        which know those before."""
        found = [entry.id for entry in self._by_subject.get(subject, ()) if entry.is_removal]
        return tuple(one for one in found if one not in self._voided())[-REMOVALS_NOTED_MAX:]

    def is_removed_since(self, subject: bytes, noted: Iterable[bytes]) -> bool:
        """Whether an installation was removed by an entry that is neither among these nor known to one of them; it may
        have been invited again since."""
        covered = self._covered(noted)
        return any(not covered & self._bit[removal] for removal in self.removals_of(subject))

    def rotations(self) -> list[LogEntry]:
        """Return the rotations that count, the one in use last."""
        found = [entry for entry in self._entries.values() if entry.key_digest and entry.id not in self._voided()]
        own = 0
        for entry in found:
            own |= self._bit[entry.id]
        return sorted(found, key=lambda entry: ((self._known[entry.id] & own).bit_count(), entry.id))

    def policies(self) -> list[LogEntry]:
        """Return the entries whose policy holds: those that count and that no other of them knew."""
        found = [
            entry for entry in self._entries.values() if entry.policy is not None and entry.id not in self._voided()
        ]
        known = 0
        for entry in found:
            known |= self._known[entry.id] & ~self._bit[entry.id]
        return [entry for entry in found if not known & self._bit[entry.id]]

    def policy(self) -> GroupPolicy:
        """Return what holds in the group."""
        if self._policy is None:
            self._policy = strictest([entry.policy for entry in self.policies() if entry.policy is not None])
        return self._policy

    def not_understood(self) -> list[LogEntry]:
        """Return the entries of which this build does not know all that they say: those that count, by signers that
        may still make one.  So removing who made one that nobody understands mends a group."""
        if self._beyond is None:
            held = [entry for entry in self._entries.values() if entry.policy is None] + self.policies()
            beyond = [entry for entry in held if not entry.is_understood and entry.id not in self._voided()]
            may = {chain: self._may_make(chain) for chain in dict.fromkeys(entry.chain for entry in beyond)}
            self._beyond = [entry for entry in beyond if may[entry.chain]]
        return self._beyond

    def _may_make(self, chain: Sequence[bytes]) -> bool:
        """Whether the subject of a chain may still make entries."""
        try:
            return "admin" in self.roles_left(steps_of(self._crypto, chain, group_id=self._group_id))
        except TrustError:
            return False

    @property
    def is_beyond(self) -> bool:
        """Whether something holds in the group that must not be passed over, and that this build does not know."""
        return any(entry.is_critical for entry in self.not_understood())

    def missing_of(self, ids: Iterable[bytes], *, bytes_max: int) -> list[list[Any]]:
        """Return entries that are not among `ids` (beginnings of ids of one length), each after those that it names.

        Args:
            bytes_max: as many as fit.
        """
        theirs = set(ids)
        size = len(next(iter(theirs), b"")) or _DIGEST_BYTES
        found: list[list[Any]] = []
        for entry in self._entries.values():
            if entry.id[:size] in theirs:
                continue
            bytes_max -= len(entry.raw) + sum(map(len, entry.chain))
            if bytes_max < 0:
                break
            found.append(entry.wire)
        return found

    def check_invariants(self) -> None:
        """Raises AssertionError when the parts do not agree."""
        seen: set[bytes] = set()
        for entry in self._entries.values():
            assert all(earlier in seen for earlier in entry.after), "an entry before one that it names"
            seen.add(entry.id)
        assert seen == self._bit.keys() == self._known.keys()
        assert len(self._entries) <= LOG_ENTRIES_MAX and self.bytes_count <= GROUP_LOG_BYTES_MAX


def _left(step: Admission, limits: Iterable[LogEntry]) -> tuple[str, ...]:
    """Return what an admission is good for under these limits."""
    roles: Iterable[str] = step.roles
    for limit in limits:
        roles = [role for role in roles if role in limit.roles]
    return ordered_roles(roles)


def _voids(parent: Admission, limits: Sequence[LogEntry], step: Admission) -> str:
    """Say why an admission does not count whose signer is limited; empty: it counts."""
    binding = [limit for limit in limits if step.digest[:SHORT_BYTES] not in limit.accepts]
    if not binding:
        return ""
    left = _left(parent, binding)
    if "invite" not in left and "admin" not in left:
        return "it was admitted by a node that was removed or may not invite any more"
    if any(role not in left for role in step.roles):
        return "it was admitted by a node that lacks a role which it granted"
    return ""


# --- making ---------------------------------------------------------------------------------------


def make_limit(
    identity: Identity,
    group: Group,
    log: GroupLog,
    crypto: Crypto,
    member: Membership,
    *,
    roles: Sequence[str],
    accepts: Iterable[bytes] = (),
    name: str = "",
    reason: str = "",
    wall: float,
) -> list[Any]:
    """Return an entry that leaves `member` only these roles, or removes it.

    Args:
        roles: what it may still do; none: it is removed.
        accepts: digests of admissions that it has signed and that stay good; at most LOG_ACCEPTS_MAX count.
        name: what it is called.
        wall: Unix seconds.

    Raises:
        TrustError: this installation may not do that.
    """
    own = _administrator(identity, group, log, crypto, wall)
    if member.installation == group.founder:
        raise TrustError("nobody removes or limits the founder of a group", "", "make a new group", code="not-allowed")
    if member.installation == identity.public_key:
        raise TrustError("a node does not remove itself", "", "to leave the group: p2pc leave", code="not-allowed")
    if own.rank >= member.rank:
        raise TrustError(
            "only the founder of the group, and heirs whom he named, remove or limit a member with the role admin",
            f"the founder is {short_device_id(group.founder)}",
            "ask there",
            code="not-allowed",
        )
    body = {
        **_body(group, "limit", log.heads(member.installation), wall),
        "subject": member.installation,
        "name": name[:NODE_NAME_CHARS_MAX],
        "roles": list(ordered_roles(roles)),
        "accepts": sorted({digest[:SHORT_BYTES] for digest in accepts})[:LOG_ACCEPTS_MAX],
        "reason": reason,
    }
    return [identity.sign_envelope(LOG_TYPE, body), list(group.chain)]


def make_rotation(
    identity: Identity, group: Group, log: GroupLog, crypto: Crypto, network_key: bytes, *, wall: float
) -> list[Any]:
    """Return an entry that puts another network key in use.

    Raises:
        TrustError: this installation may not do that.
    """
    _administrator(identity, group, log, crypto, wall)
    body = {**_body(group, "rotate", log.heads(), wall), "key": hashlib.sha256(network_key).digest()}
    return [identity.sign_envelope(LOG_TYPE, body), list(group.chain)]


def make_policy(
    identity: Identity, group: Group, log: GroupLog, crypto: Crypto, policy: GroupPolicy, *, wall: float
) -> list[Any]:
    """Return an entry that puts another policy in the place of those that are known here.

    Raises:
        TrustError: this installation may not do that.
    """
    _administrator(identity, group, log, crypto, wall)
    heads = log.heads(policies=True)
    body = {**_body(group, "policy", heads, wall), "policy": policy.wire}
    if policy.more and any(entry.is_critical for entry in log.policies()):
        body["critical"] = True
    raw = identity.sign_envelope(LOG_TYPE, body)
    if len(raw) > LOG_ENTRY_BYTES_MAX:
        raise TrustError(
            "the policy of the group cannot be changed by this version",
            f"what it does not know of it and has to keep is too large for one entry: {len(raw)} bytes",
            "update it, or remove who made that policy: p2pc group remove",
            code="policy-size",
        )
    return [raw, list(group.chain)]


def _body(group: Group, kind: str, heads: Sequence[bytes], wall: float) -> dict[str, Any]:
    """Return what all entries say."""
    return {
        "group": group.group_id,
        "kind": kind,
        "as": hashlib.sha256(group.chain[-1]).digest(),
        "after": list(heads),
        "issued": int(wall),
    }


def _administrator(identity: Identity, group: Group, log: GroupLog, crypto: Crypto, wall: float) -> Membership:
    own = check_chain(crypto, group.chain, group_id=group.group_id, subject=identity.public_key, wall=wall, log=log)
    if "admin" not in own.roles:
        raise TrustError(
            "this node may not change the group",
            f"its roles in group {group.name!r} are: {', '.join(own.roles) or 'none'}",
            f"ask the founder ({short_device_id(group.founder)}) or a member with the role admin",
            code="not-allowed",
        )
    return own
