"""What a node keeps of its groups beside its own membership: the log, and the chains of the members that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from p2pcompute.errors import IdentityError, ProtocolError, RemoteProtocolError
from p2pcompute.identity.files import read_private, replace_private
from p2pcompute.limits import TRUST_FILE_BYTES_MAX
from p2pcompute.wire import cbor

_FORMAT: Final = 1
_ID_CHARS: Final = 16


@dataclass(frozen=True, slots=True)
class KeptLog:
    """As it lay on disk: nothing in it is checked."""

    entries: Sequence[Any] = ()
    """`LogEntry.wire` of each, after those that it names."""
    chains: Sequence[Any] = ()
    """Of the members that were known."""


class LogKeeper(Protocol):
    """Where the logs of groups are kept."""

    def load(self, group_id: bytes) -> KeptLog: ...

    def save(self, group_id: bytes, kept: KeptLog) -> None: ...


@dataclass(slots=True)
class MemoryLogs:
    """Keeps them as long as the process lives."""

    kept: dict[bytes, KeptLog] = field(default_factory=dict)

    def load(self, group_id: bytes) -> KeptLog:
        return self.kept.get(group_id, KeptLog())

    def save(self, group_id: bytes, kept: KeptLog) -> None:
        self.kept[group_id] = kept


class FileLogs:
    """Keeps them in the installation's directory, one file (mode 0600) for each group, whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, group_id: bytes) -> Path:
        return self._directory / f"log-{group_id.hex()[:_ID_CHARS]}.cbor"

    def load(self, group_id: bytes) -> KeptLog:
        """Return what was kept; nothing at first.

        Raises:
            IdentityError: damaged, of another user, or readable by others: who was removed stands in it.
        """
        path = self.path(group_id)
        data = read_private(path, bytes_max=TRUST_FILE_BYTES_MAX)
        if data is None:
            return KeptLog()
        try:
            body = cbor.decode(data)
            if not isinstance(body, dict) or body.get("format") != _FORMAT:
                raise RemoteProtocolError("its format is unknown to this build")
            if not isinstance(body.get("entries"), list) or not isinstance(body.get("chains"), list):
                raise RemoteProtocolError("it has no entries")
        except ProtocolError as error:
            raise IdentityError(
                f"the group's log {path} is damaged",
                f"{error.what}; who was removed from the group is in it, so it is not passed over",
                f"restore it from a backup, or move it away (other members have it too): mv {path} {path}.damaged",
            ) from error
        return KeptLog(body["entries"], body["chains"])

    def save(self, group_id: bytes, kept: KeptLog) -> None:
        """Raises IdentityError when it cannot be written; the old one stays."""
        body = {"format": _FORMAT, "entries": list(kept.entries), "chains": [list(chain) for chain in kept.chains]}
        replace_private(self.path(group_id), cbor.encode(body), unique="log")
