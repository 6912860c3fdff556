"""Every error of p2pcompute, in one hierarchy.

Each class says what caused it, what state is left behind and what the caller should do.  Errors that a
person reads carry `what`, `why`, `fix` and a short `code` (the word in ``error[code]:``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class P2pcError(Exception):
    """Base class.  Nothing was lost; the message says what to do."""

    what: str
    why: str
    fix: str | None
    code: str
    default_code = "error"

    def __init__(self, what: str, why: str = "", fix: str | None = None, *, code: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.code = code or self.default_code

    def __str__(self) -> str:
        text = self.what
        if self.why:
            text += f" ({self.why})"
        if self.fix:
            text += f"; {self.fix}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by fields: errors travel between processes."""
        return _rebuild, (type(self), self.what, self.why, self.fix, self.code, self.__dict__)


def _rebuild(
    cls: type[P2pcError], what: str, why: str, fix: str | None, code: str, state: dict[str, object]
) -> P2pcError:
    error = cls.__new__(cls)
    Exception.__init__(error, what)
    error.__dict__.update(state)
    error.what, error.why, error.fix, error.code = what, why, fix, code
    return error


class UsageError(P2pcError):
    """The request cannot mean anything: wrong flag, value or file.  Nothing was started."""

    default_code = "usage"


class BadValue(UsageError, ValueError):
    """An argument of the library has a value that cannot mean anything; the standard library raises ValueError."""


class ConfigError(UsageError):
    """A setting is unknown or impossible.  Nothing was changed."""

    default_code = "config"


class NodeUnavailable(P2pcError):
    """No node answers here, or it speaks another protocol.  Start one, or restart it."""

    default_code = "no-node"


class IdentityError(P2pcError):
    """The key file cannot be used here (moved, unreadable, wide permissions).  Nothing was changed."""

    default_code = "identity"


class StoreError(P2pcError):
    """The store cannot be read or written (full, corrupted, newer).  It is never wiped."""

    default_code = "store"


class TrustError(P2pcError):
    """Refused: code, membership or role.  Ask the inviter."""

    default_code = "refused"


class VersionMismatch(P2pcError):
    """The two sides cannot work together (protocol or Python minor).  Both versions are named."""

    default_code = "version"


class NoEligibleNode(P2pcError):
    """No node can ever run this.  Nothing was started; `explanation` says what each node lacks, where it is known."""

    default_code = "no-node-fits"
    explanation: object = None
    """`p2pcompute.Explanation`, in errors of the library."""


class TaskError(P2pcError):
    """The task itself failed, on the node named in `node`, after all retries."""

    node: str | None
    remote_traceback: str
    stderr_tail: str
    default_code = "task"

    def __init__(
        self,
        what: str,
        why: str = "",
        fix: str | None = None,
        *,
        code: str | None = None,
        node: str | None = None,
        remote_traceback: str = "",
        stderr_tail: str = "",
    ) -> None:
        super().__init__(what, why, fix, code=code)
        self.node = node
        self.remote_traceback = remote_traceback
        self.stderr_tail = stderr_tail

    @property
    def info(self) -> Any:
        """Of an error that a future has raised, the `TaskInfo` of its task; else None."""
        return getattr(self, "p2pc", None)


class InputFailed(TaskError):
    """A call was not made, because one whose value it needs, directly or through others, failed; that error is the
    cause."""

    default_code = "input-failed"
    chain: tuple[str, ...] = ()
    """Names of the calls from the one that failed to this one; of a long chain its middle is left out."""


class WorkerDied(TaskError):
    """The process that ran the task died.  `cause` is measured: oom, signal, timeout, node-lost, evicted."""

    cause: str
    signal: int | None
    peak_rss: int | None
    """In bytes."""
    default_code = "worker-died"

    def __init__(
        self,
        what: str,
        why: str = "",
        fix: str | None = None,
        *,
        code: str | None = None,
        node: str | None = None,
        cause: str = "signal",
        signal: int | None = None,
        peak_rss: int | None = None,
    ) -> None:
        super().__init__(what, why, fix, code=code, node=node)
        self.cause = cause
        self.signal = signal
        self.peak_rss = peak_rss


class ResultDisputed(TaskError):
    """Nodes that are not trusted found different results, and nobody could say which is right."""

    default_code = "disputed"
    votes: Mapping[str, str] = MappingProxyType({})
    """Beginning of a node's key → beginning of the digest of what it found."""


class ResultRevoked(UserWarning):
    """A result that was accepted, and perhaps used, is believed no longer: who vouched for it was found to lie.

    The task is computed again."""


class ProtocolError(P2pcError):
    """A rule of the wire protocol was broken."""

    default_code = "protocol"


class LocalProtocolError(ProtocolError):
    """We broke it: a bug of ours."""


class RemoteProtocolError(ProtocolError):
    """The peer broke it.  Counted, dropped, never logged above DEBUG."""


class ChannelLost(P2pcError):
    """The channel to a peer is gone (reset, timeout, closed).  Requests in flight may or may not have arrived."""

    default_code = "channel-lost"


class DnsError(P2pcError):
    """The DNS did not say what it was asked: no such name, no answer, no name server.  Ask again later."""

    default_code = "dns"


class RemoteError(P2pcError):
    """A peer answered a request with an error; `code` and `what` are the peer's.  The channel lives on."""

    default_code = "remote"


class BlobUnavailable(P2pcError):
    """No source gave a blob that is needed.  What came of it is kept for the next try."""

    default_code = "blob-unavailable"


class InvariantViolation(AssertionError):
    """Our own invariant does not hold.  Carries the story of the object."""
