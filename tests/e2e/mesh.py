"""Real daemons on this machine, as people start them, and what tests do to them.

A `Mesh` keeps every daemon that a test starts, each with a `P2PC_HOME` of its own and confined to loopback.  When it
closes, every process that belongs to one of these homes is gone, and an error in a daemon's log fails the test.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from p2pcompute.cli.connection import Connection
from p2pcompute.errors import NodeUnavailable, UsageError
from p2pcompute.places import Paths, find_paths

T = TypeVar("T")
PROGRAM = str(Path(sys.executable).with_name("p2pc"))
START_S_MAX = 30.0
GONE_S_MAX = 10.0
"""Processes of a daemon that was killed see the end of their life line and follow it."""
_DROPPED = ("CI", "container", "KUBERNETES_SERVICE_HOST", "JPY_PARENT_PID", "COLUMNS")
_ERROR_LINE = re.compile(r"^\S+ \S+ (error|critical) ", re.MULTILINE)


def until(condition: Callable[[], T | None], limit_s: float, what: str) -> T:
    """Return what `condition` returns once it is true; AssertionError after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s:g} s: {what}")
        time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    words: tuple[str, ...]
    code: int
    raw: bytes
    err: str
    took_s: float

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    def json(self) -> Any:
        return json.loads(self.raw)

    def check(self, code: int = 0) -> Self:
        assert self.code == code, f"{self.words} exited {self.code}, not {code}\n{self.out[-3000:]}\n{self.err[-3000:]}"
        return self


class Running:
    """A command that goes on while the test does other things; its output is kept in files."""

    def __init__(self, words: Sequence[str], argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        self._words = tuple(words)
        self._began = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(env), cwd=cwd
            )
            self._out, self._err = os.dup(out.fileno()), os.dup(err.fileno())

    @property
    def out(self) -> bytes:
        return os.pread(self._out, 1 << 30, 0)

    @property
    def err(self) -> str:
        return os.pread(self._err, 1 << 30, 0).decode()

    def finish(self, limit_s: float = 60.0) -> Ran:
        """Wait for its end."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self._words} goes on after {limit_s:g} s\n{self.err[-3000:]}") from None
        return Ran(self._words, code, self.out, self.err, time.monotonic() - self._began)

    def close(self) -> None:
        """End it and forget its output.  Safe to call twice."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._out >= 0:
            os.close(self._out)
            os.close(self._err)
            self._out = self._err = -1


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        self._master, slave = pty.openpty()
        # The leader of a new session gets the first terminal that it opens as its own.
        device = os.ttyname(slave)
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" <{device} >{device} 2>&1', "sh", *words],
            stdin=subprocess.DEVNULL,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        self._slave = slave
        self._text = bytearray()
        self._reader = threading.Thread(target=self._read, args=(self._master,), daemon=True)
        self._is_open = True
        self._reader.start()

    def _read(self, master: int) -> None:
        while self._is_open:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                part = os.read(master, 65536)
            except OSError:
                return
            if not part:
                return
            self._text += part

    @property
    def text(self) -> str:
        """Everything that was shown so far."""
        return self._text.decode(errors="replace")

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def close(self) -> None:
        """Close the window: the kernel sends SIGHUP to what runs in it."""
        if self._is_open:
            self._is_open = False
            self._reader.join()
            os.close(self._slave)
            os.close(self._master)
            try:
                self.process.wait(GONE_S_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("a command lives on without its terminal") from None

    def wait(self, limit_s: float = 30.0) -> int:
        code = self.process.wait(limit_s)
        if self._is_open:
            self._reader.join(1.0)
        return code


@dataclass(slots=True, eq=False)
class Daemon:
    """One node of this mesh: its home, its process, and commands to it."""

    name: str
    home: Path
    env: dict[str, str]
    places: Paths
    """Found while the home is still ours: a test may give it to another user."""
    prefix: tuple[str, ...] = ()
    """Words before every command, like ``ip netns exec NAME``."""
    program: tuple[str, ...] = ("-m", "p2pcompute.daemon")
    """What Python runs."""
    process: subprocess.Popen[bytes] | None = None
    commands: list[Running | Terminal] = field(default_factory=list)
    expected_errors: list[str] = field(default_factory=list)
    """Patterns of log lines that are no reason to fail."""

    # --- life -------------------------------------------------------------------------------------

    def start(self, *settings: str, limit_s: float = START_S_MAX) -> Self:
        """Start the process as `p2pc node start` does, but as a child of ours, and wait until it answers."""
        assert self.process is None
        self.spawn(*settings)
        until(self._is_ready, limit_s, f"{self.name} is up\n{self.log_end()}")
        return self

    def spawn(self, *settings: str) -> None:
        words = [*self.prefix, sys.executable, "-P", *self.program]
        for setting in settings:
            words += ["--set", setting]
        self.home.mkdir(parents=True, exist_ok=True)
        with open(self.home / "stderr", "ab") as stderr:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=self.env,
                cwd=self.home,
                start_new_session=True,
            )

    def _is_ready(self) -> bool:
        assert self.process is not None
        code = self.process.poll()
        assert code is None, f"{self.name} ended with {code}\n{self.log_end()}"
        return self.connection().is_answering() and self.pid is not None

    @property
    def pid(self) -> int | None:
        """What the running node wrote about itself."""
        try:
            return int(json.loads(self.places.run_file.read_text())["pid"])
        except (OSError, ValueError, KeyError):
            return None

    def kill(self) -> None:
        """kill -9, and wait until the process is gone; its children see that and end by themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(GONE_S_MAX)
        self.process = None

    def suspend(self) -> None:
        """SIGSTOP: the daemon does nothing from now on, and its connections stay open."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def stop(self, limit_s: float = 75.0) -> int:
        """SIGTERM: drain and stop; the exit code."""
        assert self.process is not None
        self.process.terminate()
        code = self.process.wait(limit_s)
        self.process = None
        return code

    def restart(self, *settings: str) -> Self:
        self.stop()
        return self.start(*settings)

    # --- talking ----------------------------------------------------------------------------------

    def connection(self) -> Connection:
        return Connection(self.places.socket)

    def get(self, path: str) -> dict[str, Any]:
        return self.connection().request("GET", path)

    def words(self, *words: str) -> list[str]:
        return [*self.prefix, PROGRAM, *words]

    def p2pc(
        self,
        *words: str,
        stdin: bytes | None = None,
        cwd: Path | None = None,
        limit_s: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run a command to its end.  Without `stdin` it gets an empty one."""
        began = time.monotonic()
        done = subprocess.run(
            self.words(*words),
            input=stdin or b"",
            capture_output=True,
            env={**self.env, **(env or {})},
            cwd=cwd or self.home,
            timeout=limit_s,
            check=False,
        )
        return Ran(words, done.returncode, done.stdout, done.stderr.decode(), time.monotonic() - began)

    def begin(self, *words: str, cwd: Path | None = None) -> Running:
        """Start a command that goes on."""
        running = Running(words, self.words(*words), self.env, cwd or self.home)
        self.commands.append(running)
        return running

    def terminal(self, *words: str, cwd: Path | None = None) -> Terminal:
        """Start a command on a terminal."""
        env = {**self.env, "TERM": "xterm", "COLUMNS": "100"}
        terminal = Terminal(self.words(*words), env, cwd or self.home)
        self.commands.append(terminal)
        return terminal

    def close_commands(self) -> None:
        """End what `begin` and `terminal` started."""
        while self.commands:
            self.commands.pop().close()

    # --- looking ----------------------------------------------------------------------------------

    def job(self, ref: str = "last") -> dict[str, Any]:
        return self.get(f"/v1/jobs/{ref}")

    def tasks(self, ref: str = "last") -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.get(f"/v1/jobs/{ref}/tasks?limit=10000")["items"]
        return items

    def wait_done(self, count: int, limit_s: float, ref: str = "last") -> dict[str, Any]:
        """Wait until there is such a job and so many of its tasks have ended well."""

        def look() -> dict[str, Any] | None:
            try:
                job = self.job(ref)
            except UsageError:  # not submitted yet
                return None
            return job if job["done"] >= count else None

        return until(look, limit_s, f"{count} tasks done: {ref}")

    def wait_over(self, limit_s: float, ref: str = "last") -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            job = self.job(ref)
            return job if job["state"] in ("done", "failed", "cancelled") else None

        return until(look, limit_s, f"job {ref} is over")

    def peers(self) -> dict[str, str]:
        """Name → state of the others."""
        return {peer["name"]: peer["state"] for peer in self.get("/v1/peers")["items"] if peer["state"] != "self"}

    def ups(self) -> list[str]:
        return sorted(name for name, state in self.peers().items() if state == "up")

    def wait_ups(self, names: Sequence[str], limit_s: float = 20.0) -> None:
        """Wait until exactly these others are up."""
        until(lambda: self.ups() == sorted(names), limit_s, f"{self.name} sees {names}, not {self.peers()}")

    def log(self) -> str:
        path = self.places.log
        return path.read_text() if path.exists() else ""

    def log_end(self) -> str:
        stderr = self.home / "stderr"
        return f"--- {self.name}\n{self.log()[-4000:]}\n{stderr.read_text()[-4000:] if stderr.exists() else ''}"

    def errors(self) -> list[str]:
        """Lines of the log that should not be there, and what was printed beside it."""
        found = [
            line
            for line in self.log().splitlines()
            if _ERROR_LINE.match(line) and not any(re.search(pattern, line) for pattern in self.expected_errors)
        ]
        stderr = self.home / "stderr"
        if stderr.exists():
            found += [
                line
                for line in stderr.read_text().splitlines()
                if line.strip() and not any(re.search(pattern, line) for pattern in self.expected_errors)
            ]
        return found

    def processes(self) -> list[psutil.Process]:
        """Every living process that belongs to this home: daemon, worker processes, tasks."""
        return processes_of(self.home)

    def sockets(self) -> list[tuple[str, int]]:
        """(address, port) of every TCP socket on which the daemon listens and of every UDP socket that it has bound."""
        assert self.process is not None
        process = Path(f"/proc/{self.pid or self.process.pid}")
        own = set()
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                own.add(os.readlink(descriptor))
        found = []
        for kind in ("tcp", "tcp6", "udp", "udp6"):
            for line in (process / "net" / kind).read_text().splitlines()[1:]:  # of its own network namespace
                words = line.split()
                is_bound = kind.startswith("udp") or words[3] == _LISTENS
                if is_bound and f"socket:[{words[9]}]" in own:
                    host, _, port = words[1].partition(":")
                    found.append((_address_of(host), int(port, 16)))
        return sorted(found)


_LISTENS = "0A"
"""State of a TCP socket in /proc/net/tcp."""


def _address_of(text: str) -> str:
    """Return an address as /proc/net shows it, 32 bits at a time in the machine's byte order, as people write it."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def processes_of(home: Path) -> list[psutil.Process]:
    """Return the living processes whose environment or directory names `home`."""
    marks = [os.fsencode(f"{home}{end}") for end in ("/", "\0")]
    found = []
    for process in psutil.process_iter():
        try:
            environ = Path(f"/proc/{process.pid}/environ").read_bytes() + b"\0"
            directory = os.readlink(f"/proc/{process.pid}/cwd").encode() + b"/"
            is_ours = any(mark in environ for mark in marks) or directory.startswith(marks[0])
            if is_ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


class Mesh:
    """The daemons of one test (or of one module)."""

    def __init__(self, directory: Path, **env: str) -> None:
        self.directory = directory
        self.daemons: list[Daemon] = []
        kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
        kept = {name: value for name, value in kept.items() if not name.startswith("P2PC_")}
        self.env = {
            **kept,
            "P2PC_NODE__INTERFACES": "lo",
            "P2PC_NODE__ACCEPT": "all",  # tests of sandboxes say otherwise; the others run where there is none, too
            "P2PC_NO_INPUT": "1",
            "NO_COLOR": "1",
            "PYTHONWARNINGS": "default",
            "P2PC_NO_AUTOSTART": "1",
            **env,
        }

    def add(self, name: str, *, prefix: Sequence[str] = (), home: Path | None = None, **env: str) -> Daemon:
        """Return a daemon that is not started."""
        home = home or self.directory / name
        home.mkdir(parents=True, exist_ok=True)
        env = {**self.env, "P2PC_HOME": str(home), "P2PC_NODE__NAME": name, **env}
        daemon = Daemon(name, home, env, find_paths(env), tuple(prefix))
        assert len(str(daemon.places.socket)) < 100, "the socket's path is too long"
        self.daemons.append(daemon)
        return daemon

    def start(self, *names: str, slots: int = 2) -> list[Daemon]:
        """Start daemons of one group: the first one invites the others; all see one another at the end."""
        daemons = [self.add(name, P2PC_NODE__SLOTS=str(slots)) for name in names]
        for daemon in daemons:
            daemon.spawn()
        for daemon in daemons:
            until(daemon._is_ready, START_S_MAX, f"{daemon.name} is up\n{daemon.log_end()}")
        if len(daemons) > 1:
            self.join(daemons[0], daemons[1:])
        return daemons

    def join(self, inviter: Daemon, others: Sequence[Daemon]) -> None:
        token = self.token(inviter, uses=len(others))
        for other in others:
            other.connection().request("POST", "/v1/join", {"token": token, "name": None})
        self.meet([inviter, *others])

    @staticmethod
    def token(inviter: Daemon, *, uses: int = 1, expires_s: float = 600.0, is_mine: bool = True) -> str:
        body = {"uses": uses, "expires_s": expires_s, "mine": is_mine}
        answer = inviter.connection().request("POST", "/v1/invite", body)
        return str(answer["token"])

    @staticmethod
    def meet(daemons: Sequence[Daemon], limit_s: float = 20.0) -> None:
        """Wait until all see one another."""
        for daemon in daemons:
            others = sorted(other.name for other in daemons if other is not daemon)
            daemon.wait_ups(others, limit_s)

    def close(self, *, is_failing: bool = False) -> None:
        """End everything; raises AssertionError when a daemon complained or left a process behind."""
        problems: list[str] = []
        for daemon in self.daemons:
            daemon.close_commands()
        for daemon in self.daemons:
            if daemon.process is not None:
                self._end(daemon, problems)
        for daemon in self.daemons:
            # What a test started with `p2pc node start` is not our child.
            if daemon.pid is not None and daemon.connection().is_answering():
                with contextlib.suppress(NodeUnavailable):
                    daemon.connection().request("POST", "/v1/shutdown", {"drain": False})
            deadline = time.monotonic() + GONE_S_MAX
            while (left := daemon.processes()) and time.monotonic() < deadline:
                time.sleep(0.05)
            for process in left:
                with contextlib.suppress(psutil.Error):
                    problems.append(f"{daemon.name} left process {process.pid}: {' '.join(process.cmdline())}")
                    process.kill()
            problems += [f"{daemon.name}: {line}" for line in daemon.errors()]
        if is_failing:
            for daemon in self.daemons:
                print(daemon.log_end())
        if problems:
            raise AssertionError("\n".join(problems))

    def _end(self, daemon: Daemon, problems: list[str]) -> None:
        process = daemon.process
        assert process is not None
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
                process.kill()
        deadline = time.monotonic() + GONE_S_MAX
        while process.poll() is None and time.monotonic() < deadline:
            process.terminate()  # the second one stops at once
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.3)
        if process.poll() is None:
            problems.append(f"{daemon.name} did not stop")
            process.kill()
            process.wait(GONE_S_MAX)
        daemon.process = None


@contextlib.contextmanager
def running_mesh(
    directory: Path, *names: str, slots: int = 2, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[Mesh, list[Daemon]]]:
    """A mesh of daemons that see one another, ended on the way out."""
    mesh = Mesh(directory, **(settings or {}))
    try:
        yield mesh, mesh.start(*names, slots=slots)
    except BaseException:
        with contextlib.suppress(AssertionError):
            mesh.close(is_failing=True)
        raise
    mesh.close()


@contextlib.contextmanager
def trio_of_daemons(settings: Mapping[str, str] | None = None) -> Iterator[list[Daemon]]:
    """ada, bob and cyd, for all tests of a module; other users may look into their directory."""
    path = Path(tempfile.mkdtemp(prefix="p2pc-", dir="/tmp"))
    path.chmod(0o755)
    try:
        with running_mesh(path, "ada", "bob", "cyd", settings=settings) as (_mesh, daemons):
            yield daemons
    finally:
        shutil.rmtree(path, ignore_errors=True)


def joblog_rows(path: Path) -> list[list[str]]:
    """Return the rows of a GNU parallel joblog, without its header."""
    lines = path.read_text().splitlines()
    assert lines[0].split("\t") == [
        "Seq",
        "Host",
        "Starttime",
        "JobRuntime",
        "Send",
        "Receive",
        "Exitval",
        "Signal",
        "Command",
    ]
    return [line.split("\t") for line in lines[1:]]


def numbers(items: Iterable[str]) -> list[int]:
    return sorted(int(item) for item in items)
