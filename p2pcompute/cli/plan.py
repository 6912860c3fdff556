"""From the words of `run` to tasks: what TARGET is, where its inputs come from, and one line of the API for each task.

Nothing here talks to a node; everything that is wrong with a request shows up here, before anything starts.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.api.result_keys import DoneKeys, command_key, content_key
from p2pcompute.cli.command import check_text
from p2pcompute.cli.inputs import Row, Source, SourceKind, parse_range, split_arguments
from p2pcompute.cli.output import count_text, one_line
from p2pcompute.cli.replacement import Form, Template, choose_form, expand_list, parse
from p2pcompute.errors import UsageError
from p2pcompute.limits import WASM_MODULE_BYTES_MAX

if TYPE_CHECKING:
    from p2pcompute.execution.locking import Requirements

_FILE_FUNCTION: Final = re.compile(r"(?P<file>.+\.py)::(?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)")
_MODULE_FUNCTION: Final = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*)::(?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)")
_MODULE_FILE: Final = re.compile(r"[^\s{}]+\.wasm")
_HASH_BYTES: Final = 1 << 20
HASHES_HELD_MAX: Final = 100_000
"""Files whose digests are kept, so that one sent with each task is read once; some 20 MiB."""
RUNTIMES_MAX: Final = 1000
"""Calls that --batch auto learns from."""
_MODULE_HEAD: Final = b"\0asm"
_VARYING: Final = re.compile(
    r"\$\{?(?:S?RANDOM|EPOCHSECONDS|HOSTNAME|P2PC_NODE|P2PC_SCRATCH|PARALLEL_JOBSLOT|TMPDIR)\b\}?|\$\$|\{%\}"
    r"|(?<![\w/.{$-])(?:date|hostname|mktemp|nproc|uptime|uuidgen|whoami)(?![\w/.}=-])"
)
PEEKED_ROWS: Final = 64
"""Rows that the preflight looks at."""
BATCH_TARGET_S: Final = 0.5
BATCH_MAX: Final = 256
BATCH_PROBES: Final = 16
"""Calls that go out alone before --batch auto decides."""
BATCH_PROBE_S: Final = 1.0
BATCH_FILES_MAX: Final = 256
"""Files sent with one task of several calls."""


@dataclass(frozen=True, slots=True)
class Function:
    """A Python function, or a WASI module, as the node gets it."""

    target: str
    code: bytes
    modules: bytes | None
    key: bytes
    module_names: tuple[str, ...] = ()
    """Modules of the user that travel along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Files around each task."""

    send: Sequence[str] = ()
    """Patterns with replacement strings."""
    fetch: Sequence[str] = ()
    share: Sequence[str] = ()

    @property
    def needs_directory(self) -> bool:
        """True when a task runs in a directory of its own, with these files."""
        return bool(self.send or self.fetch or self.share)


def read_target(words: Sequence[str], kind: str) -> str:
    """Return what TARGET is: command, shell, function or wasm.

    Args:
        words: TARGET and its arguments.
        kind: --kind auto|command|shell|python|wasm.

    Raises:
        UsageError: `kind` is python and TARGET names no function.
    """
    is_function = len(words) >= 1 and bool(_FILE_FUNCTION.fullmatch(words[0]) or _MODULE_FUNCTION.fullmatch(words[0]))
    match kind:
        case "command" | "shell" | "wasm" | "container":
            return kind
        case "python":
            if not is_function:
                raise UsageError(
                    f"{words[0]!r} names no Python function",
                    "a function is file.py::name or package.module::name",
                    "p2pc run sim.py::simulate ::: 1 2 3",
                )
            return "function"
    if is_function:
        return "function"
    if _MODULE_FILE.fullmatch(words[0]):
        return "wasm"
    return str(choose_form(words))


def ship_function(target: str) -> Function:
    """Load and pickle a function.

    Raises:
        UsageError: it cannot be loaded or pickled; the reason is named.
    """
    from p2pcompute.execution.functions import key_of, load_file_function, ship

    function = load_file_function(target)
    shipped = ship(function)
    return Function(target, shipped.code, shipped.modules_zip, key_of(function), shipped.module_names)


def find_deps(deps: str, kind: str, words: Sequence[str]) -> Requirements | None:
    """Return where the packages of the tasks are listed: of a function by its script, of a command by a script of it.

    Raises:
        UsageError: --deps names no file, or its block cannot be read.
    """
    from p2pcompute.execution.locking import find_requirements

    if kind in ("wasm", "container"):
        return None
    if kind == "function":
        place = words[0].rpartition("::")[0]
        script: Path | None = Path(place) if place.endswith(".py") else Path(*place.split(".")).with_suffix(".py")
    else:
        script = next((Path(word) for word in words[:2] if kind == "command" and word.endswith(".py")), None)
    return find_requirements(deps, script, is_beside=kind == "function")


def ship_source(target: str, requirements: Requirements) -> Function:
    """Read a function that has packages of its own, which need not be installed here.

    Raises:
        UsageError: there is no such file, module or function.
    """
    from p2pcompute.execution import sources

    shipped = sources.ship_source(target)
    key = hashlib.blake2b(digest_size=16)
    for part in (shipped.code, shipped.modules_zip or b"", requirements.key):
        key.update(len(part).to_bytes(8, "big") + part)
    return Function(target, shipped.code, shipped.modules_zip, key.digest(), shipped.module_names)


def read_module(path: str) -> Function:
    """Read a WASI module.  Whether it is one that nodes can run, they say.

    Raises:
        UsageError: it cannot be read, or is no WebAssembly at all.
    """
    check_readable(path, "WASM module")
    try:
        with open(path, "rb") as file:
            code = file.read(WASM_MODULE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"the WASM module {path!r} cannot be read", error.strerror or "", code="input-file") from error
    if len(code) > WASM_MODULE_BYTES_MAX:
        raise UsageError(f"{path!r} is too large", f"a module has up to {WASM_MODULE_BYTES_MAX >> 20} MiB", "strip it")
    if not code.startswith(_MODULE_HEAD):
        raise UsageError(
            f"{path!r} is no WebAssembly module",
            "it is empty" if not code else "it does not begin like one",
            "name a program for wasm32-wasip1, or run it as what it is: --kind command",
            code="wasm",
        )
    return Function(path, code, None, hashlib.blake2b(code, digest_size=16).digest())


# --- sources ------------------------------------------------------------------------------------------------------


def find_sources(
    words: Sequence[str],
    *,
    arg_files: Sequence[str],
    ranges: str | None,
    from_json: str | None,
    is_stdin_free: bool,
    block_bytes: int | None = None,
) -> tuple[list[str], list[Source]]:
    """Return the command's words and its sources: flags first, then ``:::`` in order; else standard input.

    Args:
        words: everything after the flags.
        is_stdin_free: standard input is not a terminal.
        block_bytes: of --pipe: the content of the source is what the tasks read.

    Raises:
        UsageError: no command, a missing file.
    """
    command, written = split_arguments(words)
    sources = [Source(SourceKind.FILE, path=path) for path in arg_files]
    if ranges is not None:
        sources.append(parse_range(ranges))
    if from_json is not None:
        sources.append(Source(SourceKind.JSON, path=from_json))
    sources += written
    if not command:
        raise UsageError("there is no command", "inputs alone are not run", "p2pc run sh -c {} ::: 'echo a' 'echo b'")
    for source in sources:
        if source.path and not source.is_stdin:
            check_readable(source.path, "input file")
    if not sources and is_stdin_free:
        sources.append(Source(SourceKind.FILE, path="-"))
    if block_bytes is not None and sources:
        if len(sources) > 1 or sources[0].kind is not SourceKind.FILE:
            why = "it cuts standard input, or the one file of -a"
            raise UsageError("--pipe goes with no other inputs", why, "p2pc run --pipe -a FILE wc -l")
        sources = [Source(SourceKind.BLOCKS, path=sources[0].path, block_bytes=block_bytes)]
    return command, sources


def check_readable(path: str, what: str) -> None:
    """Raise UsageError unless the file can be opened for reading.  Pipes are left alone."""
    if not os.path.exists(path):
        raise UsageError(f"the {what} {path!r} does not exist", "", "check the name", code="input-file")
    if os.path.isdir(path):
        raise UsageError(f"the {what} {path!r} is a directory", code="input-file")
    if not os.access(path, os.R_OK):
        raise UsageError(f"the {what} {path!r} cannot be read", "no permission", code="input-file")


# --- files --------------------------------------------------------------------------------------------------------


def what_varies(words: Sequence[str]) -> str:
    """Return what a command has that is another on each node or each time, like $P2PC_NODE; empty: nothing is seen."""
    found = _VARYING.search(" ".join(words))
    return found[0] if found else ""


def name_in_task(path: str) -> str:
    """Return the name under which a sent file lies in the task's directory: the path as typed, made relative.

    "a/b.tif" and "./a/b.tif" → "a/b.tif", "/data/b.tif" → "data/b.tif", "../b.tif" → "b.tif".  As with GNU parallel and
    rsync, "/./" marks where the name begins: "/data/./a/b.tif" → "a/b.tif".
    """
    path = path.rpartition("/./")[2]
    parts = [part for part in os.path.normpath(path).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)


def file_line(path: str, what: str) -> dict[str, str]:
    """Return {path, name} of a file or folder of this machine.

    Raises:
        UsageError: it is missing or cannot be read.
    """
    if not os.path.exists(path):
        raise UsageError(f"{what}: there is no file {path!r}", "", "check the name", code="send-file")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{what}: {path!r} cannot be read", "no permission", code="send-file")
    name = name_in_task(path)
    if not name:
        raise UsageError(f"{what}: {path!r} has no name that a task could know it by", code="send-file")
    return {"path": os.path.abspath(path), "name": name}


class FileHashes:
    """Hashes of files for resume keys, each file read once while it does not change."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int, int], bytes]] = {}

    def of(self, path: str) -> bytes:
        """Return the hash of a file's content, or of everything in a folder.

        Raises:
            UsageError: it cannot be read.
        """
        try:
            if os.path.isdir(path):
                digest = hashlib.blake2b(digest_size=16)
                for folder, folders, names in os.walk(path):
                    folders.sort()
                    for name in sorted(names):
                        inner = os.path.join(folder, name)
                        digest.update(content_key(os.path.relpath(inner, path), self._file(inner)))
                return digest.digest()
            return self._file(path)
        except OSError as error:
            raise UsageError(f"{path!r} cannot be read", error.strerror or str(error), code="send-file") from error

    def _file(self, path: str) -> bytes:
        info = os.stat(path)
        mark = (info.st_ino, info.st_size, info.st_mtime_ns)
        known = self._known.get(path)
        if known is not None and known[0] == mark:
            return known[1]
        digest = hashlib.blake2b(digest_size=16)
        with open(path, "rb") as content:
            while chunk := content.read(_HASH_BYTES):
                digest.update(chunk)
        if len(self._known) < HASHES_HELD_MAX:
            self._known[path] = (mark, digest.digest())
        return digest.digest()


# --- tasks --------------------------------------------------------------------------------------------------------


class TaskMaker:
    """Makes the API's line of each task.

    Args:
        kind: command, shell, function or wasm.
        words: the command as typed; TARGET alone for a function.
        with_keys: tasks get a resume key by content.
        packages_key: of a command's packages.
        image: of a container.
    """

    def __init__(
        self,
        kind: str,
        words: Sequence[str],
        files: Files,
        *,
        function: Function | None = None,
        env: Mapping[str, str] | None = None,
        with_keys: bool = False,
        packages_key: bytes = b"",
        image: str = "",
    ) -> None:
        self._kind = kind
        self._words = list(words)
        self._files = files
        self._function = function
        form = Form.ARGV if kind in ("wasm", "container") else kind
        self._template = None if kind == "function" else Template(words, Form(form))
        self._with_keys = with_keys
        self._hashes = FileHashes()
        for pattern in (*files.send, *files.fetch):
            if "{%}" in pattern:
                raise UsageError(f"{pattern!r}: the slot {{%}} is known to the node only", code="slot")
        self._common = b""
        if with_keys:
            shared = [part for path in files.share for part in (name_in_task(path), self._hashes.of(path).hex())]
            variables = sorted(f"{name}={value}" for name, value in (env or {}).items())
            if image:
                shared.append(self._hashes.of(image).hex() if os.path.isfile(image) else image)
            self._common = content_key(kind, shared, variables, function.key if function else packages_key)

    def line(self, row: Row, seq: int) -> dict[str, Any]:
        """Return the task of a row; `seq` counts from 1.

        Raises:
            UsageError: a file to send is missing, or a name to fetch leaves the task's directory.
        """
        line: dict[str, Any] = {"inputs": list(row.columns)}
        if row.block is not None:
            line["stdin_b64"] = base64.b64encode(row.block).decode()
        send = [file_line(path, "--send") for pattern in self._files.send for path in expand_list(pattern, row, seq)]
        if send:
            line["send"] = send
            row = _renamed(row, self._files.send, send, seq)
        fetch = [name for pattern in self._files.fetch for name in expand_list(pattern, row, seq)]
        if fetch:
            line["fetch"] = [_fetch_name(name) for name in fetch]
        if self._template is not None:
            line["argv"] = self._template.argv(row, seq)
        else:
            line["argv"] = [*self._words, *row.columns]
            line["args_b64"] = base64.b64encode(dump_call(row.items)).decode()
        if self._with_keys:
            line["key"] = self._key(line, row).hex()
        return line

    def _key(self, line: Mapping[str, Any], row: Row) -> bytes:
        files = [part for file in line.get("send", ()) for part in (file["name"], self._hashes.of(file["path"]).hex())]
        argument = line["argv"] if self._template is not None else [_canonical(item) for item in row.items]
        more = [] if row.block is None else [hashlib.blake2b(row.block, digest_size=16).digest()]
        return content_key(self._common, argument, files, line.get("fetch", []), *more)

    def text(self, row: Row, seq: int) -> str:
        """Return a task's command for people."""
        if self._template is None:
            return " ".join(shlex.quote(word) for word in (*self._words, *row.columns))
        return self._template.text(row, seq)

    def command_text(self, line: Mapping[str, Any]) -> str:
        """Return the command as the node writes it into a joblog."""
        argv: list[str] = line["argv"]
        return argv[0] if self._kind == "shell" else shlex.join(argv)

    def joblog_key(self, line: Mapping[str, Any]) -> bytes:
        """Return the key by which a joblog knows the task."""
        return command_key(self.command_text(line))


def _canonical(item: Any) -> str:
    return json.dumps(item, sort_keys=True, ensure_ascii=False)


def dump_call(items: Sequence[Any]) -> bytes:
    """Pickle the arguments of a call: plain data only, so the standard pickle does."""
    import pickle

    return pickle.dumps((tuple(items), {}), protocol=5)


def _renamed(row: Row, patterns: Sequence[str], send: Sequence[Mapping[str, str]], seq: int) -> Row:
    """Return the row with inputs that are sent files by their names in the task's directory."""
    typed = [path for pattern in patterns for path in expand_list(pattern, row, seq)]
    names = {
        path: file["name"] for path, file in zip(typed, send, strict=True) if os.path.normpath(path) != file["name"]
    }
    if not names:
        return row
    columns = tuple(names.get(column, column) for column in row.columns)
    items = tuple(names.get(item, item) if isinstance(item, str) else item for item in row.items)
    return Row(columns, items, {name: names.get(value, value) for name, value in row.names.items()})


def _fetch_name(name: str) -> str:
    check_text([name], "names of files travel as text", "let the task rename the file")
    clean = name.removeprefix("./")
    if clean.endswith("/") and clean.strip("/"):
        raise UsageError(
            f"--fetch {name!r} names a directory",
            "files are brought back",
            f"--fetch '{clean.rstrip('/')}/**'",
            code="fetch-name",
        )
    if not clean or clean.startswith("/") or any(part in ("", ".", "..") for part in clean.split("/")):
        raise UsageError(
            f"--fetch {name!r} is not below the task's directory",
            "names are relative to it, without ..",
            "let the task write into its current directory",
            code="fetch-name",
        )
    return clean


@dataclass(slots=True)
class Tally:
    """What became of the inputs while they were read."""

    seen: int = 0
    done_before: int = 0
    failed_before: int = 0
    """Failed in an earlier run, whether or not they are tried again."""
    failed_kept: int = 0
    """Of these, not tried again."""
    new: int = 0

    def text(self) -> str:
        """ "resume: 1 284 of 2 000 already done, 3 failed before, 713 new"."""
        failed = f", {count_text(self.failed_before)} failed before" if self.failed_before else ""
        return (
            f"resume: {count_text(self.done_before)} of {count_text(self.seen)} already done{failed}, "
            f"{count_text(self.new)} new"
        )


def make_lines(
    rows: Iterator[Row], maker: TaskMaker, tally: Tally, *, earlier: DoneKeys | None = None, retry_failed: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the tasks that are to be run.

    Args:
        earlier: what is done already; None = run all.
        retry_failed: run again what failed.
    """
    for row in rows:
        tally.seen += 1
        line = maker.line(row, tally.seen)
        if earlier is not None:
            key = bytes.fromhex(line["key"]) if earlier.by == "content" else maker.joblog_key(line)
            if key in earlier.done:
                tally.done_before += 1
                continue
            if key in earlier.failed:
                tally.failed_before += 1
                if not retry_failed:
                    tally.failed_kept += 1
                    continue
            else:
                tally.new += 1
        yield line


@dataclass(slots=True)
class Chunker:
    """Puts several calls of a function into one task.

    A number is the size of every chunk.  "auto": some calls go out alone; from the time they take, chunks are made that
    last about BATCH_TARGET_S.  A call that fails fails its chunk.
    """

    size: int | None
    """None = auto."""
    runtimes: list[float] = field(default_factory=list)
    """Of tasks that ended, per call; filled from another thread."""

    def took(self, task: Mapping[str, Any]) -> None:
        """Learn from a task that ended."""
        runtime = task.get("runtime_s")
        if self.size is None and isinstance(runtime, int | float) and len(self.runtimes) < RUNTIMES_MAX:
            self.runtimes.append(float(runtime) / max(1, int(task.get("chunk") or 1)))

    def _next_size(self) -> int:
        if self.size is not None:
            return self.size
        if not self.runtimes:
            return 1
        mean = sum(self.runtimes) / len(self.runtimes)
        return max(1, min(BATCH_MAX, int(BATCH_TARGET_S / max(mean, 1e-6))))

    def chunks(
        self, lines: Iterator[dict[str, Any]], wait: Callable[[Callable[[], bool], float], None]
    ) -> Iterator[dict[str, Any]]:
        """Yield tasks of one or more calls.

        Args:
            lines: tasks of one call.
            wait: called as wait(condition, seconds) while the first calls run.
        """
        if self.size is None:
            probes = list(itertools.islice(lines, BATCH_PROBES))
            yield from probes
            if len(probes) == BATCH_PROBES:
                wait(lambda: bool(self.runtimes), BATCH_PROBE_S)
        while some := list(itertools.islice(lines, self._next_size())):
            if len(some) == 1 and self.size is None:
                yield some[0]
            else:
                yield from (_joined(fitting) for fitting in _without_clashes(some))


def _without_clashes(lines: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield runs of lines that can share a directory: no two different files of one name, nor too many of them."""
    run: list[Mapping[str, Any]] = []
    names: dict[str, str] = {}
    for line in lines:
        files = {file["name"]: file["path"] for file in line.get("send", ())}
        has_clash = any(names.get(name, path) != path for name, path in files.items())
        if run and (has_clash or len(names) + len(files) > BATCH_FILES_MAX):
            yield run
            run, names = [], {}
        run.append(line)
        names.update(files)
    if run:
        yield run


def _joined(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One task of several calls."""
    import pickle

    calls = [pickle.loads(base64.b64decode(line["args_b64"])) for line in lines]
    joined: dict[str, Any] = {
        "argv": [lines[0]["argv"][0], *itertools.chain.from_iterable(line["argv"][1:] for line in lines)],
        "inputs": list(itertools.chain.from_iterable(line["inputs"] for line in lines)),
        "args_b64": base64.b64encode(pickle.dumps(calls, protocol=5)).decode(),
        "chunk": len(lines),
    }
    send = {file["name"]: file for line in lines for file in line.get("send", ())}
    if send:
        joined["send"] = list(send.values())
    fetch = dict.fromkeys(name for line in lines for name in line.get("fetch", ()))
    if fetch:
        joined["fetch"] = list(fetch)
    if "key" in lines[0]:
        joined["key"] = "".join(line["key"] for line in lines)
    return joined


# --- checks before anything starts --------------------------------------------------------------------------------


def _how_to_run(program: str, words: Sequence[str]) -> str:
    """Return what to type instead, where a command is a file here."""
    rest = f" {shlex.join(words[1:])}" if words[1:] else ""
    if os.access(program, os.X_OK):
        return f"p2pc run {shlex.quote(program)}{rest}"
    path = shlex.quote(program.removeprefix("./"))
    if program.endswith(".py"):
        return f"p2pc run python3 {path}{rest}, or a function in it: p2pc run {path}::NAME"
    return f"chmod +x {shlex.quote(program)}, or name its interpreter: sh {path}"


def check_executable(words: Sequence[str], files: Files, *, only_here: bool) -> None:
    """Check the command's program as far as this machine can say.

    Args:
        words: the command, ARGV form.
        only_here: no other machine will run it.

    Raises:
        UsageError: a file named by a path is missing or cannot be executed; or nothing here has that name.
    """
    program = words[0]
    if any(not isinstance(part, str) for part in parse(program)):
        return
    if "/" not in program:
        if shutil.which(program) is not None:
            return
        if os.path.isfile(program) and not files.needs_directory:
            raise UsageError(
                f"{program!r} is a file here, not a command",
                "commands are looked for in PATH",
                _how_to_run(f"./{program}", words),
                code="not-executable",
            )
        if only_here:
            raise UsageError(
                f"there is no command {program!r}",
                "it is in no directory of PATH",
                "check the spelling, or install it",
                code="not-found",
            )
        return
    sent = {name_in_task(path) for path in (*files.send, *files.share)}
    if not os.path.exists(program):
        if name_in_task(program) in sent or (os.path.isabs(program) and not only_here):
            return
        raise UsageError(f"there is no file {program!r} to run", "", "check the name", code="not-found")
    if os.path.isdir(program):
        raise UsageError(f"{program!r} is a directory", "", "name the program in it", code="not-executable")
    if not os.access(program, os.X_OK):
        raise UsageError(
            f"{program!r} is not executable",
            "",
            _how_to_run(program, words),
            code="not-executable",
        )
    if files.needs_directory and not os.path.isabs(program) and name_in_task(program) not in sent:
        raise UsageError(
            f"{program!r} would not be found",
            "with --send, --fetch or --share a task runs in a directory of its own",
            f"send it along: --share {shlex.quote(program)}",
            code="not-found",
        )


def check_local_files(rows: Sequence[Row], count: int | None, files: Files, command: str) -> None:
    """Refuse inputs that are files only this machine has, when other nodes would run the tasks.

    Args:
        rows: the first few rows.
        count: number of inputs, when known.

    Raises:
        UsageError: most of them name files here that are not sent along.
    """
    if files.send or not rows:
        return
    shared = [os.path.abspath(path) for path in files.share]
    found: list[str] = []
    for row in rows:
        for column in row.columns:
            path = os.path.abspath(column) if column else ""
            is_shared = any(path == folder or path.startswith(folder + "/") for folder in shared)
            if path and not is_shared and os.path.isfile(path):
                found.append(column)
                break
    if len(found) * 2 < len(rows) or not found:
        return
    number = count_text(count) + " " if count is not None else ""
    raise UsageError(
        "this input is a file only this machine has"
        if count == 1
        else f"these {number}inputs are files only this machine has",
        f'a task elsewhere could not open "{one_line(found[0], 60)}"',
        "send them along: --send {}   (and --fetch NAME for what the task writes)\nor stay here: --local",
        code="local-files",
    )


def check_module_files(rows: Sequence[Row], files: Files) -> None:
    """Refuse inputs that are files, when they are not sent to a module, which sees no other files.

    Args:
        rows: the first few rows.

    Raises:
        UsageError: most of them are.
    """
    if files.needs_directory or not rows:
        return
    found = [row.columns[0] for row in rows if row.columns and os.path.isfile(row.columns[0])]
    if found and len(found) * 2 >= len(rows):
        raise UsageError(
            "a WASM module would not find its input",
            f'it sees the files that are sent to it, and "{one_line(found[0], 60)}" is not',
            "send them along: --send {}   (and --fetch NAME for what it writes)",
            code="local-files",
        )


def check_fetch_names(rows: Sequence[Row], files: Files) -> None:
    """Refuse files of different tasks that would come back into one directory under one name.

    Args:
        rows: the first few rows.

    Raises:
        UsageError: two of them have different inputs and bring back the same name.
    """
    seen: dict[str, Row] = {}
    for seq, row in enumerate(rows, start=1):
        for pattern in files.fetch:
            for name in expand_list(pattern, row, seq):
                other = seen.setdefault(name, row)
                if other.columns == row.columns or any(sign in name for sign in "*?["):
                    continue
                raise UsageError(
                    f"--fetch {pattern}: several tasks would bring back {name!r}",
                    "one would overwrite the other",
                    "name it after the input, like {}.out, or keep each task's files apart: --results DIR",
                    code="fetch-name",
                )
