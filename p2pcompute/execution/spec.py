"""What a job and its tasks are, for execution: the part that the scheduler carries unread.

`JobSpec` is the same for all tasks of a job and part of the signed job envelope; `TaskPayload` is one task.
Both are canonical CBOR on the wire and in the journal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.host.interfaces import BlobRef
from p2pcompute.limits import DIGITS_MAX, LOCK_PLATFORMS_MAX
from p2pcompute.wire import cbor

GLOB_CHARS: Final = frozenset("*?[")
"""What makes a pattern of a part of a name."""
SANDBOXES: Final = ("process", "sandbox")
IMAGE_NAME: Final = re.compile(
    r"(?!(?:dir|docker|docker-archive|docker-daemon|oci|oci-archive|containers-storage|ostree|sif|tarball):)"
    r"(?=.{1,501}$)[A-Za-z0-9][A-Za-z0-9._-]*(?::[0-9]+(?=/))?(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]*)?(?:@[a-z0-9]+:[0-9a-f]+)?"
)
"""[HOST[:PORT]/]NAME[:TAG][@DIGEST].  Engines take more: what stands before a colon is the name of a transport
to podman first, which would read files of the machine (containers-transports(5))."""
_PLATFORM: Final = re.compile(r"[a-z]{1,16}/[a-z0-9_]{1,16}")


class TaskKind(StrEnum):
    FUNCTION = "function"
    """Python callable by cloudpickle."""
    COMMAND = "command"
    """argv, no shell."""
    SHELL = "shell"
    """One string for `sh -c`."""
    WASM = "wasm"
    """A WASI preview 1 program in `code`; argv as of a command."""
    CONTAINER = "container"
    """A command in a container of `image`, or of the archive in `code`."""
    SIMULATED = "simulated"
    """Takes time in the simulator only."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that a task finds in its directory under `name` (relative, no "..")."""

    name: str
    blob: BlobRef
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """How every task of a job is run."""

    kind: TaskKind
    code: BlobRef | None = None
    """FUNCTION: cloudpickle of the callable, read by the worker process once per job.  WASM: the module.  CONTAINER:
    the image, as `podman save` writes it."""
    image: str = ""
    """CONTAINER: name of the image, where `code` is none."""
    modules: BlobRef | None = None
    """FUNCTION: zip of the user's own modules that are too large to travel by value."""
    share: tuple[InputFile, ...] = ()
    """Files every task needs; sent once per node, linked into each task's directory."""
    env: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 1.0
    mem_bytes: int | None = None
    """Address-space limit of the task (RLIMIT_AS); so much must be free where it starts."""
    gpus: float = 0.0
    """GPUs of a task.  They decide how many run at once; which one is whose nothing says: a task sees all of them."""
    disk_bytes: int | None = None
    """So much must be free on the node's disk where it starts."""
    cpu_s: float | None = None
    """CPU-time limit (RLIMIT_CPU)."""
    timeout_s: float | None = None
    """Wall-time limit of one attempt."""
    output_bytes_max: int | None = None
    """Limit of any one file that the task writes (RLIMIT_FSIZE)."""
    network: bool = False
    """In a sandbox: its tasks reach public addresses; else none."""
    sandbox: str = ""
    """"sandbox": in one also where the submitter is trusted, and values of functions come back as data; "process":
    only where there is none; empty: as the node does it."""
    digits: int = 0
    """FUNCTION: numbers in values are rounded to so many significant digits, to be compared; 0: not."""
    fuel: int | None = None
    """WASM: instructions that a task may execute, counted alike on every node; not counted when None."""
    packages: BlobRef | None = None
    """Lock of the Python packages that its tasks run with (`locks`); None: those of the node."""
    platforms: tuple[str, ...] = ()
    """Where these packages can be had, as in ``linux/x86_64``; empty: everywhere."""
    is_built: bool = False
    """Some of them have to be built: only a node that trusts the submitter does that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPayload:
    """One task."""

    args: bytes = b""
    """FUNCTION: cloudpickle of (args, kwargs), inline."""
    args_blob: BlobRef | None = None
    """FUNCTION: the same as a blob when larger than INLINE_BYTES_MAX."""
    chunk: int = 0
    """FUNCTION: 0 = one call.  N > 0 = `args` is a list of N (args, kwargs) pairs and the value a list of results."""
    argv: tuple[str, ...] = ()
    """COMMAND, WASM: the words; SHELL: one word, the string; CONTAINER: what the image is given, it may be nothing."""
    stdin: bytes = b""
    stdin_blob: BlobRef | None = None
    send: tuple[InputFile, ...] = ()
    fetch: tuple[str, ...] = ()
    """Names or glob patterns, relative to the task's directory, of the files to bring back; each must match."""
    env: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    """The input words that made this task, for people ({} values)."""
    key: bytes = b""
    """Resume key: hash of what makes this task the same task in another run; b"" when not asked for."""
    work_s: float = 0.0
    """SIMULATED: work on a node of speed 1."""


_COMPACT: Final[dict[type, tuple[str, ...]]] = {
    JobSpec: tuple(JobSpec.__dataclass_fields__),
    TaskPayload: tuple(TaskPayload.__dataclass_fields__),
}


def _pack(value: Any) -> Any:
    if isinstance(value, InputFile):
        return [value.name, [value.blob.digest, value.blob.size], value.mode]
    if isinstance(value, BlobRef):
        return [value.digest, value.size]
    if isinstance(value, tuple):
        return [_pack(item) for item in value]
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return value


def _encode(value: JobSpec | TaskPayload) -> bytes:
    """Only fields that differ from their defaults are written, under their names."""
    fields = type(value).__dataclass_fields__
    out: dict[str, Any] = {}
    for name in _COMPACT[type(value)]:
        item = getattr(value, name)
        if (
            item is None
            or item is False
            or item in ((), b"", "", {})
            or (name in ("chunk", "work_s", "gpus", "digits") and not item)
        ):
            continue
        if name == "cpus" and item == fields["cpus"].default:
            continue
        out[name] = _pack(item)
    return cbor.encode(out)


def encode_spec(spec: JobSpec) -> bytes:
    """Return the canonical bytes of a job's spec."""
    return _encode(spec)


def encode_payload(payload: TaskPayload) -> bytes:
    """Return the canonical bytes of a task's payload."""
    return _encode(payload)


_PLAIN_CALL: Final = b"\xa1\x64args"
"""How the payload of a call with nothing but inline arguments begins: a map of one entry, "args"."""


def encode_call(args: bytes) -> bytes:
    """Return `encode_payload(TaskPayload(args=args))`, faster.  `args` is not empty."""
    size = len(args)
    if size < 24:
        head = bytes((0x40 | size,))
    elif size < 1 << 8:
        head = bytes((0x58, size))
    elif size < 1 << 16:
        head = b"\x59" + size.to_bytes(2, "big")
    else:
        head = b"\x5a" + size.to_bytes(4, "big")
    return _PLAIN_CALL + head + args


def plain_args(data: bytes) -> bytes | None:
    """Return the arguments in a payload that `encode_call` may have made, else None."""
    if not data.startswith(_PLAIN_CALL) or len(data) < 8:
        return None
    head = data[6]
    start = 7 if head < 0x58 else {0x58: 8, 0x59: 9, 0x5A: 11}.get(head, 0)
    args = data[start:]
    return args if start and args and encode_call(args) == data else None


def _blob(value: Any) -> BlobRef:
    if not (isinstance(value, list) and len(value) == 2):
        raise RemoteProtocolError("not a blob reference")
    digest, size = value
    if not (isinstance(digest, bytes) and len(digest) == 32 and isinstance(size, int) and size >= 0):
        raise RemoteProtocolError("not a blob reference")
    return BlobRef(digest, size)


def is_safe_name(name: str) -> bool:
    """True for a relative POSIX path that stays below the task's directory."""
    parts = name.split("/")
    return bool(name) and not name.startswith("/") and "\0" not in name and all(p not in ("", ".", "..") for p in parts)


def is_output(name: str, patterns: Sequence[str]) -> bool:
    """True for a name that these patterns of `TaskPayload.fetch` name, as `child_files.find_outputs` finds them.

    For names that a worker has sent: whatever it says, only what was asked for is put on this machine.
    """
    return is_safe_name(name) and any(_is_named(name.split("/"), pattern) for pattern in patterns)


def _is_named(names: Sequence[str], pattern: str) -> bool:
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if parts and parts[-1] == "**":
        parts.append("*")

    def reached(places: set[int]) -> set[int]:
        """These places in the pattern, and those behind "**", which may stand for nothing."""
        found: set[int] = set()
        for place in places:
            found.add(place)
            while place < len(parts) and parts[place] == "**":
                place += 1
                found.add(place)
        return found

    places = reached({0})
    for number, name in enumerate(names):
        following: set[int] = set()
        for place in places:
            if place == len(parts):
                continue
            part = parts[place]
            is_hidden = name.startswith(".") and not part.startswith(".")
            if part == "**":
                following |= {place} if number + 1 < len(names) and not is_hidden else set()
            elif (not is_hidden and fnmatchcase(name, part)) if set(part) & GLOB_CHARS else name == part:
                following.add(place + 1)
        places = reached(following)
    return len(parts) in places


def _files(value: Any) -> tuple[InputFile, ...]:
    if not isinstance(value, list):
        raise RemoteProtocolError("not a list of files")
    files = []
    for item in value:
        if not (isinstance(item, list) and len(item) == 3 and isinstance(item[0], str) and isinstance(item[2], int)):
            raise RemoteProtocolError("not an input file")
        if not is_safe_name(item[0]):
            raise RemoteProtocolError(f"a file name that leaves the task's directory: {item[0]!r}")
        files.append(InputFile(item[0], _blob(item[1]), item[2] & 0o777))
    return tuple(files)


def _words(value: Any) -> tuple[str, ...]:
    if not (isinstance(value, list) and all(isinstance(item, str) and "\0" not in item for item in value)):
        raise RemoteProtocolError("not a list of words")
    return tuple(value)


def _environment(value: Any) -> dict[str, str]:
    if not (isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())):
        raise RemoteProtocolError("not an environment")
    if any(not name or "=" in name or "\0" in name + text for name, text in value.items()):
        raise RemoteProtocolError("an impossible environment variable")
    return value


def _platforms(value: Any) -> tuple[str, ...]:
    words = _words(value)
    if len(words) > LOCK_PLATFORMS_MAX or not all(_PLATFORM.fullmatch(word) for word in words):
        raise RemoteProtocolError("not a list of platforms")
    return words


def _image(value: Any) -> str:
    if not isinstance(value, str) or not IMAGE_NAME.fullmatch(value):
        raise RemoteProtocolError("not the name of an image")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RemoteProtocolError("neither true nor false")
    return value


def _digits(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= DIGITS_MAX:
        raise RemoteProtocolError("not a number of digits")
    return value


def _sandbox(value: Any) -> str:
    if value not in SANDBOXES:
        raise RemoteProtocolError("not a kind of sandbox")
    return str(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise RemoteProtocolError("not a limit")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise RemoteProtocolError("not a count")
    return value


def _raw(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise RemoteProtocolError("not bytes")
    return value


_SPEC_FIELDS: Final[dict[str, Any]] = {
    "kind": TaskKind,
    "code": _blob,
    "modules": _blob,
    "share": _files,
    "env": _environment,
    "cpus": _number,
    "mem_bytes": _count,
    "gpus": _number,
    "disk_bytes": _count,
    "cpu_s": _number,
    "timeout_s": _number,
    "output_bytes_max": _count,
    "network": _flag,
    "sandbox": _sandbox,
    "digits": _digits,
    "fuel": _count,
    "packages": _blob,
    "platforms": _platforms,
    "is_built": _flag,
    "image": _image,
}
_PAYLOAD_FIELDS: Final[dict[str, Any]] = {
    "args": _raw,
    "args_blob": _blob,
    "chunk": _count,
    "argv": _words,
    "stdin": _raw,
    "stdin_blob": _blob,
    "send": _files,
    "fetch": _words,
    "env": _environment,
    "inputs": _words,
    "key": _raw,
    "work_s": _number,
}


def _decode(data: bytes, known: dict[str, Any]) -> dict[str, Any]:
    value = cbor.decode(data, allow_float=True)
    if not isinstance(value, dict) or any(name not in known for name in value):
        raise RemoteProtocolError("unknown field in a task description")
    try:
        return {name: known[name](item) for name, item in value.items()}
    except ValueError as error:
        raise RemoteProtocolError("bad value in a task description", str(error)) from error


def decode_spec(data: bytes) -> JobSpec:
    """Return a job's spec.

    Raises:
        RemoteProtocolError: the submitter sent something else.
    """
    fields = _decode(data, _SPEC_FIELDS)
    if "kind" not in fields:
        raise RemoteProtocolError("a job without a kind")
    spec = JobSpec(**fields)
    if spec.kind is TaskKind.CONTAINER and not spec.image and spec.code is None:
        raise RemoteProtocolError("a container job without an image")
    return spec


def kind_of(data: bytes) -> TaskKind | None:
    """Return the kind of a job's tasks by its encoded spec; None when it cannot be read."""
    try:
        return decode_spec(data).kind
    except RemoteProtocolError:
        return None


def decode_payload(data: bytes) -> TaskPayload:
    """Return a task's payload.

    Raises:
        RemoteProtocolError: the submitter sent something else.
    """
    args = plain_args(data)
    return TaskPayload(**_decode(data, _PAYLOAD_FIELDS)) if args is None else TaskPayload(args=args)


@lru_cache(maxsize=64)
def fence_of(data: bytes) -> tuple[str, int]:
    """Return (`sandbox`, `digits`) of a job by its encoded spec, which is asked for each batch; of one that cannot be
    read, as if it said nothing."""
    try:
        spec = decode_spec(data)
    except RemoteProtocolError:
        return "", 0
    return spec.sandbox, spec.digits


def blobs_of(spec: JobSpec, payload: TaskPayload) -> list[BlobRef]:
    """Return the blobs that must be on the node before the task starts, without repetition, in a fixed order."""
    refs: dict[BlobRef, None] = {}
    for ref in (spec.code, spec.modules, spec.packages, payload.args_blob, payload.stdin_blob):
        if ref is not None:
            refs[ref] = None
    for file in (*spec.share, *payload.send):
        refs[file.blob] = None
    return list(refs)
