"""How a task may run, and what is known of one that ran."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from p2pcompute.config import parse_duration, parse_size
from p2pcompute.errors import BadValue, UsageError
from p2pcompute.execution.spec import is_safe_name
from p2pcompute.limits import DIGITS_MAX, PRIORITY_MAX, REPLICAS_MAX

if TYPE_CHECKING:
    from p2pcompute.resources.matching import Needs

TrustLevel = Literal["trusted", "member", "any"]
Sandbox = Literal["auto", "process", "sandbox"]
State = Literal["waiting", "running", "done", "failed", "cancelled"]
VerifyMethod = Literal["arbitrate", "credibility", "spotcheck", "majority", "boinc", "none"]
COUNT_LIMIT: Final = 1e6
"""Below this are CPUs and GPUs of one task: more is a mistake, and no machine has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Everything about how one task may run."""

    mem: int | str | None = None
    """Limit of the task's memory: bytes, or text like "2G"."""
    timeout: float | str | None = None
    """Limit of one attempt's wall time: seconds, or text like "5m"."""
    retries: int = 0
    """Extra attempts after the function has raised or run out of time.  A node or process that is lost does not
    count: its tasks run again in any case."""
    priority: int = 0
    """Among your own jobs: higher ones go first, from -1000 to 1000."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the task."""
    cpus: float = 1.0
    """Cores that a task uses: so many slots of a node."""
    gpus: float = 0.0
    """GPUs that a task uses: so large a part of a node's slots as of its GPUs."""
    disk: int | str | None = None
    """Disk that must be free: bytes, or text like "20G"."""
    require: Sequence[str] = ()
    """Conditions that a node must meet, like "has=ffmpeg" or "node.cpus >= 8 || node.gpu.count > 0"."""
    prefer: Sequence[str] = ()
    """What orders the nodes that do, highest first, like "-load" or "has=ffmpeg"."""
    on: Sequence[str] = ()
    """Only these nodes, by name or id (`NodeInfo.id`, or as `p2pc peers` shows it)."""
    not_on: Sequence[str] = ()
    """Not these."""
    deps: str | os.PathLike[str] = "auto"
    """Python packages of the task, which nodes install: a file that lists them (uv.lock, requirements.txt, a script
    with a PEP 723 header), "none", or "auto": of functions those in the header of the program that runs."""
    trust: TrustLevel = "member"
    """Lowest trust that a node may have: "trusted", "member" or "any"."""
    error_rate: float | None = None
    """Accepted probability that a result from nodes that are not trusted is wrong; None: 1e-4."""
    replicas: int | None = None
    """Instead of `error_rate`: so many nodes that are not trusted compute each task, and are compared."""
    verify: VerifyMethod = "arbitrate"
    """Method of checking results of nodes that are not trusted; "none": they are believed."""
    equal: Literal["exact"] | int = "exact"
    """When results of two nodes are the same: bit for bit, or when their numbers, rounded to so many significant
    digits (1 to 15), are; then the values of functions come back rounded, wherever they were computed.  Numbers in
    containers, data classes, arrays and frames count, those in other objects do not.  Of values over 64 KiB only the
    rounded bytes are compared: two that lie on two sides of a rounding step differ, and one of them counts as wrong."""
    sandbox: Sandbox = "auto"
    """"sandbox": in one on your own computers too, where what a function returns has to be data; "process": only where
    there is none; "auto": as the owner of each node says."""
    network: Literal["none", "full"] = "none"
    """What tasks reach from a sandbox: nothing, or public addresses where the node's owner allows it."""
    send: Sequence[str | os.PathLike[str]] = ()
    """Files and folders of this machine that each task finds in its directory, under their relative names; "{}" stands
    for the first argument.  An argument that is one of these paths reaches the task as the name that it has there."""
    fetch: Sequence[str] = ()
    """Names or patterns of files in the task's directory to bring back (`MeshFuture.files`); "{}" as above."""
    key: str | None = None
    """Stands for the function's code, beside its name, in what `MeshExecutor(resume=True)` knows a call by: change it
    when results of before do not count any more.  `env`, `deps` and `equal` count beside it.  None: the code itself."""

    def __post_init__(self) -> None:
        """Refuse what cannot mean anything.

        Raises:
            BadValue: a value is of a wrong kind or out of its range.
        """
        if type(self.retries) is not int or not 0 <= self.retries < 1 << 16:
            raise _bad("retries", self.retries, "a count from 0")
        if type(self.priority) is not int or abs(self.priority) > PRIORITY_MAX:
            raise _bad("priority", self.priority, f"a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}")
        if not all(isinstance(text, str) for pair in self.env.items() for text in pair):
            raise _bad("env", self.env, "names and values that are text")
        if (mem := self.mem_bytes) is not None and mem <= 0:
            raise _bad("mem", self.mem, "bytes, or text like '2G'")
        if (timeout := self.timeout_s) is not None and timeout <= 0:
            raise _bad("timeout", self.timeout, "seconds above 0, or text like '5m'")
        if (disk := self.disk_bytes) is not None and disk <= 0:
            raise _bad("disk", self.disk, "bytes, or text like '20G'")
        for name in ("cpus", "gpus"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < COUNT_LIMIT:
                raise _bad(name, number, "a number from 0")
        self._check_demands()
        if not isinstance(self.deps, str | os.PathLike):
            raise _bad("deps", self.deps, "'auto', 'none' or the path of a file")
        self._check_files()
        for name in ("require", "prefer", "on", "not_on"):
            texts = getattr(self, name)
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise _bad(name, texts, "a list of texts")
        if self.require or self.prefer:
            from p2pcompute.resources.matching import check_needs

            check_needs(self.needs)

    def _check_files(self) -> None:
        for name, kind in (("sandbox", Sandbox), ("network", Literal["none", "full"])):
            if getattr(self, name) not in get_args(kind):
                words = " or ".join(repr(word) for word in get_args(kind))
                fix = "p2pcompute.wasm() runs modules" if getattr(self, name) == "wasm" else "change it"
                raise _bad(name, getattr(self, name), words, fix)
        if self.equal != "exact" and (type(self.equal) is not int or not 1 <= self.equal <= DIGITS_MAX):
            raise _bad("equal", self.equal, f"'exact', or significant digits from 1 to {DIGITS_MAX}")
        for name in ("send", "fetch"):
            paths = getattr(self, name)
            if isinstance(paths, str) or not all(isinstance(path, str | os.PathLike) for path in paths):
                raise _bad(name, paths, "a list of names")
        for pattern in self.fetch:
            if not is_safe_name(pattern.replace("{}", "x")):
                raise _bad("fetch", pattern, "names below the task's directory, without ..")
        if self.key is not None and not isinstance(self.key, str):
            raise _bad("key", self.key, "text")

    @property
    def has_files(self) -> bool:
        return bool(self.send or self.fetch)

    @property
    def digits(self) -> int:
        """Significant digits to which numbers are rounded; 0: they are not."""
        return 0 if isinstance(self.equal, str) else self.equal

    def _check_demands(self) -> None:
        if self.trust not in get_args(TrustLevel):
            raise _bad("trust", self.trust, "'trusted', 'member' or 'any'")
        if self.verify not in get_args(VerifyMethod):
            raise _bad("verify", self.verify, "one of " + ", ".join(get_args(VerifyMethod)))
        rate, replicas = self.error_rate, self.replicas
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 1e-9 <= rate < 1):
            raise _bad("error_rate", rate, "a probability from 1e-9 to below 1")
        if replicas is not None and (type(replicas) is not int or not 1 <= replicas <= REPLICAS_MAX):
            raise _bad("replicas", replicas, f"a count from 1 to {REPLICAS_MAX}")
        if replicas is not None and (rate is not None or self.verify not in ("arbitrate", "majority")):
            raise _bad("replicas", replicas, "effect alone: not with error_rate, or a method that counts nothing")

    @property
    def demands(self) -> dict[str, Any]:
        """How urgent it is and whose results are believed: the terms of a job that say so, where they are not the usual
        ones."""
        terms: dict[str, Any] = {}
        if self.priority:
            terms["priority"] = self.priority
        if self.trust != "member":
            terms["trust"] = self.trust
        if self.verify != "arbitrate":
            terms["verify"] = self.verify
        if self.error_rate is not None:
            terms["error_ppb"] = round(self.error_rate * 1e9)
        if self.replicas is not None:
            terms["replicas"] = self.replicas
        return terms

    @property
    def needs(self) -> Needs:
        """What a task asks of a node."""
        from p2pcompute.resources.matching import Needs

        return Needs(
            require=tuple(self.require),
            prefer=tuple(self.prefer),
            cpus=float(self.cpus),
            mem_bytes=self.mem_bytes,
            gpus=float(self.gpus),
            disk_bytes=self.disk_bytes,
        )

    @property
    def is_choosy(self) -> bool:
        """Whether not every node will do."""
        return bool(
            self.require or self.prefer or self.on or self.not_on or self.mem or self.disk or self.gpus or self.cpus > 1
        )

    @property
    def disk_bytes(self) -> int | None:
        return parse_size(self.disk) if isinstance(self.disk, str) else self.disk

    @property
    def mem_bytes(self) -> int | None:
        return parse_size(self.mem) if isinstance(self.mem, str) else self.mem

    @property
    def timeout_s(self) -> float | None:
        return parse_duration(self.timeout) if isinstance(self.timeout, str) else self.timeout

    def changed(self, **changes: Any) -> TaskOptions:
        """Return the same with some fields changed.

        Raises:
            UsageError: there is no such option.
        """
        for name in changes:
            if name not in TaskOptions.__dataclass_fields__:
                known = ", ".join(TaskOptions.__dataclass_fields__)
                raise UsageError(f"there is no task option {name!r}", f"options are: {known}", "use one of them")
        return replace(self, **changes)

    def identity(self) -> str:
        """Return text that is the same for the same options."""
        asked = (
            str(self.deps),
            self.cpus,
            self.gpus,
            self.disk_bytes,
            *(tuple(t) for t in (self.require, self.prefer, self.on)),
        )
        demands = sorted(self.demands.items())
        files = (tuple(os.fspath(path) for path in self.send), tuple(self.fetch))
        return repr(
            (
                (self.mem_bytes, self.timeout_s, self.retries, sorted(self.env.items())),
                (asked, tuple(self.not_on), demands),
                (self.equal, self.sandbox, self.network, files, self.key),
            )
        )


def _bad(name: str, value: object, wanted: str, fix: str = "change it") -> BadValue:
    what = f"the task option {name}={value!r} cannot be used"
    return BadValue(what, f"it takes {wanted}", fix, code="option")


def check_errors(errors: str) -> None:
    """Check what is to become of errors among results.

    Raises:
        BadValue: it is no such word.
    """
    if errors not in ("raise", "skip", "return"):
        raise BadValue(f"errors={errors!r} cannot be used", 'it is "raise", "skip" or "return"', "change it")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """A task as it stands: a value of the moment at which it was asked for."""

    id: str
    """32 hex digits; empty until it was given to the node."""
    index: int
    """Its place in its job, from 0; -1 until then."""
    state: State
    node: str | None
    """Name of the node that ran it."""
    attempt: int
    """How many times it was started."""
    submitted: datetime
    started: datetime | None
    finished: datetime | None
    bytes_in: int
    bytes_out: int
    exit_code: int | None
    runtime_s: float | None
    stdout: str
    """The end of what it printed, at most 64 KiB."""
    stderr: str


def moment(unix_s: float) -> datetime | None:
    """Return Unix seconds as a time with a zone; None for 0, and for what no calendar has."""
    try:
        return datetime.fromtimestamp(unix_s, UTC) if unix_s else None
    except (ValueError, OverflowError, OSError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedOptions:
    """What a person may choose about an embedded node."""

    worker_count: int | None = None
    """Worker processes of its own; None: a core each when alone, none beside this machine's node; 0: submit only."""
    is_local: bool = False
    """Never join this machine's node."""
    name: str = ""
    group: str | None = None
    """Of this machine's node; None: the one in use."""
