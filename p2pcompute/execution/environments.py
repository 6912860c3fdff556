"""Python environments of jobs: built by uv once for each list of packages, kept, and read-only for tasks.

An environment is a directory with an interpreter of this node's own minor and the packages of one lock (`locks`).  It
is found by the hash of the lock, so that jobs with the same packages share it and jobs with other versions do not meet.
uv runs in a sandbox of its own (`environment_box`).  For an installation that is not trusted it takes wheels only,
whose installation runs nothing of what is in them, and each such installation has environments and fetched files of
its own; files whose hash the lock does not name are refused for everybody.

Which package index is asked says the node's owner, by uv's own variables in the node's environment (UV_DEFAULT_INDEX,
UV_INDEX, UV_FIND_LINKS, UV_OFFLINE and the like); configuration files are not read.

What is kept is bounded by `bytes_max`: the environment that was not used for longest goes first, then what was fetched.

Deviations: where there is no bubblewrap uv runs as it is, for those whose tasks run without a sandbox too.  Bytecode is
compiled after the first tasks were let in: it takes longer than everything else.

Source: uv's reference, "environment variables"; PEP 405 (virtual environments).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import site
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pcompute.errors import RemoteProtocolError
from p2pcompute.execution import box_places, sandbox
from p2pcompute.execution.environment_failures import EnvironmentFailed, explain
from p2pcompute.execution.locks import check_lock
from p2pcompute.execution.trees import remove_tree
from p2pcompute.host.tasks import TaskScope
from p2pcompute.limits import (
    ENVIRONMENT_BUILD_S,
    ENVIRONMENT_BUILDS_MAX,
    ENVIRONMENT_BYTES_MAX,
    ENVIRONMENT_FAILED_S,
    ENVIRONMENT_FAILURES_MAX,
    ENVIRONMENTS_MAX,
    KIB,
)

OWN: Final = "own"
"""Whose environments those of this installation's user are."""
_CACHE: Final = "fetched"
"""Beside the environments of an installation: what uv has fetched and unpacked for them."""
_FETCHED_PLACE: Final = "/p2pc-fetched"
"""The same, as uv sees it."""
_READY: Final = ".p2pc-ready"
"""In an environment that is complete; holds its size in bytes."""
_NO_NAMESPACES: Final = "bwrap: "
"""How bubblewrap begins what it says: it could not make a sandbox."""
_LOOK_S: Final = 1.0
"""How often a build is looked at."""
_OUTPUT_BYTES: Final = 16 * KIB
_FROM_OWNER: Final = ("UV_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_NETWORK_FILES: Final = (
    "resolv.conf",
    "hosts",
    "nsswitch.conf",
    "gai.conf",
    "host.conf",
    "ssl",
    "pki",
    "ca-certificates",
)


def find_uv() -> str | None:
    """Return the path of uv: that of this Python's own environment, else on the PATH."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("uv")


@dataclass(frozen=True, slots=True)
class Environment:
    """One that is ready."""

    path: Path
    library: Path
    """Directory for PYTHONPATH: this package and what it needs in a worker process, and nothing else of the node's."""

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"


class Environments:
    """Those of one node.  All but the builds themselves happens in the event loop."""

    def __init__(
        self,
        directory: Path,
        *,
        bytes_max: int,
        is_confined: bool = True,
    ) -> None:
        """Args:
        is_confined: uv must run in a sandbox; False: it does where there is one.
        """
        self._directory = directory
        self._bytes_max = bytes_max
        self.in_use: Callable[[], Collection[Path]] = tuple
        """Returns the paths of environments that processes run in: they stay."""
        self._is_confined = is_confined
        self._building: dict[Path, asyncio.Task[Environment | EnvironmentFailed]] = {}
        self._finishing: dict[asyncio.Task[None], None] = {}
        self._held: dict[Path, int] = {}
        """Those that were used lately, and the descriptors that keep them."""
        self._turns = asyncio.Semaphore(ENVIRONMENT_BUILDS_MAX)
        self._failures: dict[Path, tuple[float, EnvironmentFailed]] = {}
        self._processes: dict[subprocess.Popen[bytes], None] = {}
        self._scope = TaskScope("environments")
        self._has_namespaces = True
        """Nothing speaks against it that bubblewrap works here."""
        self.is_closed = False
        self.built_count = 0
        """Environments that were built since the start."""
        self.evicted_count = 0
        """Those that were removed to make room."""

    def _place(self, digest: bytes, owner: str) -> Path:
        about = f"{sys.version_info.major}.{sys.version_info.minor} {os.path.realpath(sys.executable)}"
        key = hashlib.blake2b(digest + about.encode(), digest_size=16).hexdigest()
        return self._directory / owner / key

    def ready(self, digest: bytes, owner: str) -> Environment | None:
        """Return the environment for a lock with this digest when it is there, and note that it is used.

        Args:
            owner: OWN, or whose it is: hexadecimal digits.
        """
        path = self._place(digest, owner)
        try:
            os.utime(path / _READY)
            self._hold(path)
        except OSError:
            return None
        return Environment(path, self._library())

    def _hold(self, path: Path) -> None:
        """Keep an environment from being removed, here and by other processes of this user, until `make_room`.

        Raises:
            OSError: it is being removed, or is gone.
        """
        if path in self._held:
            return
        mark = os.open(path / _READY, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(mark)
            raise
        self._held[path] = mark

    def _let_go(self, kept: Collection[Path]) -> None:
        for path in [path for path in self._held if path not in kept]:
            os.close(self._held.pop(path))

    async def get(self, digest: bytes, lock_path: str, owner: str, *, may_build: bool) -> Environment:
        """Return the environment for a lock; build it first when it is not there.  Those who ask meanwhile wait.

        Args:
            lock_path: file that holds the lock.
            may_build: packages without a wheel may be built, which runs code of theirs.

        Raises:
            EnvironmentFailed: it cannot be built here.
        """
        if (found := self.ready(digest, owner)) is not None:
            return found
        path = self._place(digest, owner)
        failed_at, failure = self._failures.get(path, (float("-inf"), None))
        if failure is not None and time.monotonic() - failed_at < ENVIRONMENT_FAILED_S:
            raise failure
        task = self._building.get(path)
        if task is None:
            task = self._building[path] = self._scope.spawn(self._build(path, lock_path, owner, may_build), "build")
            task.add_done_callback(lambda _task: self._building.pop(path, None))
        made = await asyncio.shield(task)
        if isinstance(made, EnvironmentFailed):
            raise made
        return made

    async def close(self) -> None:
        """End builds under way."""
        self.is_closed = True
        for process in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
        for task in [*self._building.values(), *self._finishing]:
            await task  # not cancelled: its thread sees that we are closed, and must not outlive us
        await self._scope.close()
        self._let_go(())

    # --- building -------------------------------------------------------------------------------------

    async def _build(self, path: Path, lock_path: str, owner: str, may_build: bool) -> Environment | EnvironmentFailed:
        async with self._turns:
            try:
                await asyncio.to_thread(self._make, path, lock_path, owner, may_build)
                self._hold(path)
            except EnvironmentFailed as failure:
                self._failures.pop(path, None)
                self._failures[path] = (time.monotonic(), failure)
                if len(self._failures) > ENVIRONMENT_FAILURES_MAX:
                    del self._failures[next(iter(self._failures))]
                return failure
            except OSError as error:
                return EnvironmentFailed(f"its packages could not be stored here: {error}", "make room on that node")
        self.built_count += 1
        after = self._scope.spawn(self._finish(path, owner), "finish")
        self._finishing[after] = None
        after.add_done_callback(lambda task: self._finishing.pop(task, None))
        return Environment(path, self._library())

    def _make(self, path: Path, lock_path: str, owner: str, may_build: bool) -> None:
        """Build an environment, in a thread, unless another process just did.

        Raises:
            EnvironmentFailed: that did not work.
        """
        uv = find_uv()
        if uv is None:
            raise EnvironmentFailed("this node has no uv, which installs packages", "pip install 'uv>=0.9'")
        turn = self._begin_build(path)
        assert turn is not None
        try:
            if (path / _READY).exists():
                return
            lock = Path(lock_path).read_bytes()
            check_lock(lock)
            user = self._prepare(path)
            (path / "lock").write_bytes(lock)
            (path / "lock").chmod(0o644)
            said = self._run(lambda place: _words(uv, place, may_build, has_packages=bool(lock)), path, owner, user)
            if said is not None and said.startswith(_NO_NAMESPACES):
                if owner != OWN and self._is_confined:
                    raise sandbox.NoSandbox(f"a sandbox could not be made: {said}", "p2pc doctor, there")
                self._has_namespaces = False
                self._prepare(path)
                (path / "lock").write_bytes(lock)
                said = self._run(lambda place: _words(uv, place, may_build, has_packages=bool(lock)), path, owner, None)
            if said is not None:
                raise explain(said, may_build=may_build)
            size = _size(path)
            remove_tree(str(path / "tmp"))
            (path / _READY).unlink(missing_ok=True)  # a package may have put something there
            _note_ready(path, size)
            _protect(path)
        except RemoteProtocolError as error:
            raise EnvironmentFailed(f"its packages are not listed as they must be: {error}", is_final=True) from error
        except sandbox.NoSandbox as error:
            self._discard(path)
            raise EnvironmentFailed(f"packages cannot be installed safely here: {error}", error.fix) from error
        except BaseException:
            self._discard(path)
            raise
        finally:
            os.close(turn)

    def _begin_build(self, path: Path, *, waits: bool = True) -> int | None:
        """Wait until nobody else builds the same; return the descriptor that keeps them out, None when it is built now.

        Raises:
            OSError: there can be no files.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        turn = os.open(path.parent / f"{path.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(turn)
            return None
        return turn

    def _user(self) -> int | None:
        """Return the user that uv becomes; None: it is ours."""
        return sandbox.user_of_slot(self._directory, 0) if self._bubblewrap() else None

    def _prepare(self, path: Path) -> int | None:
        """Make the directories of an environment; return the user that it is built as, None for ours."""
        user = self._user()
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        cache = path.parent / _CACHE
        self._discard(path)
        path.mkdir(mode=0o755)
        (path / "tmp").mkdir(mode=0o755)
        cache.mkdir(mode=0o755, exist_ok=True)
        self._library()
        if user is not None:
            for directory in (path, path / "tmp", cache):
                os.chown(directory, user, user)
        return user

    def _run(self, words: Callable[[str], list[str]], path: Path, owner: str, user: int | None) -> str | None:
        """Run a command on an environment, in a sandbox where there is one; return what it said when it failed.

        Args:
            words: makes the command from where the environment is seen.

        Raises:
            EnvironmentFailed: it took too long or too much room, or this node stops.
            NoSandbox, OSError: it cannot be run.
        """
        if self.is_closed:
            raise EnvironmentFailed("this node stops")
        cache = path.parent / _CACHE
        bubblewrap = self._bubblewrap()
        if bubblewrap:
            place = box_places.ENVIRONMENT
            start = [*_confinement(bubblewrap, path, cache, user), *words(place)]
            variables = _variables(place, _FETCHED_PLACE)
        elif self._is_confined and owner != OWN:
            raise sandbox.NoSandbox("there is no sandbox on this machine", sandbox.install_command())
        else:
            start, variables = words(str(path)), _variables(str(path), str(cache))
        log = path.parent / f"{path.name}.log"
        deadline = time.monotonic() + ENVIRONMENT_BUILD_S
        with open(log, "w+b") as said:
            process = subprocess.Popen(
                [*sandbox.lower_priority(), *start],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd="/",
                env=variables,
                start_new_session=True,
            )
            self._processes[process] = None
            why = ""
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_LOOK_S)
                        break
                    if _size(path, ENVIRONMENT_BYTES_MAX) > ENVIRONMENT_BYTES_MAX:
                        why = f"its packages take more than {ENVIRONMENT_BYTES_MAX >> 30} GiB"
                    elif time.monotonic() > deadline:
                        why = f"its packages could not be installed within {ENVIRONMENT_BUILD_S / 60:g} minutes"
                    if why or self.is_closed:
                        os.killpg(process.pid, 9)
            finally:
                del self._processes[process]
                log.unlink(missing_ok=True)
            if self.is_closed:
                raise EnvironmentFailed("this node stopped while it installed the packages")
            if why:
                raise EnvironmentFailed(why, "ask for fewer packages", is_final=True)
            if process.returncode == 0:
                return None
            said.seek(max(0, said.seek(0, os.SEEK_END) - _OUTPUT_BYTES))
            return said.read().decode("utf-8", "replace").strip() or f"uv ended with exit code {process.returncode}"

    def _bubblewrap(self) -> str:
        """Return the path of bubblewrap; empty where there is none, or it does not work."""
        if not self._has_namespaces:
            return ""
        try:
            return sandbox.find_bubblewrap()
        except sandbox.NoSandbox:
            return ""

    def _library(self) -> Path:
        """Return the directory of links, made where they are missing: by two builds at once too, in a thread each."""
        library = self._directory / "library"
        for name, source in sandbox.library_parts():
            link = library / name
            if not link.exists():
                library.mkdir(mode=0o755, parents=True, exist_ok=True)
                made = library / f".{name}.{os.getpid()}.{threading.get_ident()}"
                made.unlink(missing_ok=True)
                made.symlink_to(source)
                made.replace(link)
        return library

    def _discard(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            remove_tree(str(path))

    # --- afterwards -----------------------------------------------------------------------------------

    async def _finish(self, path: Path, owner: str) -> None:
        """Compile bytecode, then make room."""
        await asyncio.to_thread(self._compile, path, owner)
        await self.make_room()

    def _compile(self, path: Path, owner: str) -> None:
        with contextlib.suppress(OSError, EnvironmentFailed, sandbox.NoSandbox):
            _protect(path, is_open=True)
            (path / "tmp").mkdir(mode=0o755, exist_ok=True)
            user = self._user()
            if user is not None:
                os.chown(path / "tmp", user, user)
            self._run(_compiling, path, owner, user)
            remove_tree(str(path / "tmp"))
            _note_ready(path, _size(path))
        with contextlib.suppress(OSError):
            _protect(path)

    async def make_room(self) -> None:
        """Remove what was not used for longest until the rest fits."""
        kept = await asyncio.to_thread(self._survey)
        total = sum(size for _used, size, _path in kept)
        busy = {*self.in_use(), *self._building}
        self._let_go(busy)
        for count, (_used, size, path) in enumerate(sorted(kept)):
            if total <= self._bytes_max and len(kept) - count <= ENVIRONMENTS_MAX:
                return
            if path in busy or (path.name == _CACHE and any(other.parent == path.parent for other in self._building)):
                continue
            trash = path.with_name(f"{path.name}.gone")
            with contextlib.suppress(OSError):
                if path.name != _CACHE:
                    mark = os.open(path / _READY, os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else another process uses it
                        path.rename(trash)
                    finally:
                        os.close(mark)
                else:
                    path.rename(trash)
                total -= size
                self.evicted_count += path.name != _CACHE
                await asyncio.to_thread(self._discard, trash)

    def _survey(self) -> list[tuple[float, int, Path]]:
        """Return (when it was used last, bytes, path) of all that is kept; what no build has finished is removed."""
        found = []
        for parent in self._directory.iterdir() if self._directory.is_dir() else ():
            if parent.name == "library" or not parent.is_dir():
                continue
            for path in parent.iterdir():
                mark = path / _READY
                try:
                    if path.name == _CACHE:  # goes after all environments that were made with it
                        found.append((max(path.stat().st_mtime, time.time()), _size(path), path))
                    elif path not in self._building:
                        found.append((mark.stat().st_mtime, int(mark.read_text()), path))
                except (OSError, ValueError):
                    if path.is_dir() and (turn := self._begin_build(path, waits=False)) is not None:
                        self._discard(path)
                        os.close(turn)
        return found


def _words(uv: str, place: str, may_build: bool, *, has_packages: bool) -> list[str]:
    """Return the command that fills an environment."""
    make = [uv, "venv", "--quiet", "--relocatable", "--no-project", "--no-config", "--allow-existing"]
    make += ["--python", sys.executable, place]
    install = [uv, "pip", "install", "--quiet", "--no-config", "--no-deps", "--require-hashes", "--no-progress"]
    install += ["--python", f"{place}/bin/python", "-r", f"{place}/lock"]
    if not may_build:
        install += ["--only-binary", ":all:"]
    if not has_packages:
        return make
    return ["/bin/sh", "-c", f"{shlex.join(make)} && exec {shlex.join(install)}"]


def _compiling(place: str) -> list[str]:
    """Return the command that compiles bytecode; the interpreter is this node's own, without any packages: those of the
    environment may run code when theirs begins."""
    return [sys.executable, "-I", "-S", "-m", "compileall", "-q", f"{place}/lib"]


def _variables(place: str, cache: str) -> dict[str, str]:
    """Return the environment of uv: what the node's owner says of the package index, and nothing else."""
    kept = {name: value for name, value in os.environ.items() if name.upper().startswith(_FROM_OWNER)}
    for name in [name for name in kept if name.startswith(("UV_PYTHON", "UV_PROJECT", "UV_CONFIG", "UV_SYSTEM"))]:
        del kept[name]
    return {
        **kept,
        "PATH": sandbox.environment()["PATH"],
        "HOME": f"{place}/tmp",
        "TMPDIR": f"{place}/tmp",
        "UV_CACHE_DIR": cache,
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        "UV_CONCURRENT_BUILDS": "1",
        "PYTHONUTF8": "1",
    }


def _local_indexes() -> list[str]:
    """Return the directories of this machine that uv is told to take packages from."""
    texts = [os.environ.get(name, "") for name in ("UV_FIND_LINKS", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL")]
    texts += [os.environ.get("UV_EXTRA_INDEX_URL", ""), os.environ.get("SSL_CERT_FILE", "")]
    words = [
        word.rpartition("=file://")[2].removeprefix("file://")
        for text in texts
        for word in text.replace(",", " ").split()
    ]
    return [word for word in dict.fromkeys(words) if word.startswith("/") and os.path.exists(word)]


def _confinement(bubblewrap: str, path: Path, cache: Path, user: int | None) -> list[str]:
    """Return the words that start a command in a sandbox which sees an environment and what was fetched for it."""
    uv = find_uv() or ""
    words = [bubblewrap, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--cap-drop", "ALL"]
    if user is None:
        words += ["--unshare-user"]
    else:
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            words += ["--cap-add", capability]
    made: dict[str, None] = {}
    words += ["--bind", str(path / "tmp"), "/tmp"]  # before what is seen: this interpreter may be below it
    words += sandbox.seen(made)
    for name in _NETWORK_FILES:
        if os.path.exists(f"/etc/{name}"):
            words += ["--ro-bind", os.path.realpath(f"/etc/{name}"), f"/etc/{name}"]
    words += ["--proc", "/proc"]
    for place in (*_local_indexes(), uv):
        words += [*sandbox.places([os.path.dirname(place)], made), "--ro-bind", place, place]
    words += ["--bind", str(path), box_places.ENVIRONMENT, "--bind", str(cache), _FETCHED_PLACE, "--chdir", "/"]
    words += ["--remount-ro", "/", "--"]
    library = [sandbox.LIBRARY, site.getusersitepackages() if site.ENABLE_USER_SITE else ""]
    words += ["/usr/bin/env", f"PYTHONPATH={os.pathsep.join(filter(None, library))}"]
    words += [sys.executable, "-P", "-m", "p2pcompute.execution.environment_box", "-" if user is None else str(user)]
    return [*words, "/usr/bin/env", "-u", "PYTHONPATH"]


def _size(path: Path, enough: int | None = None) -> int:
    """Return the bytes that a tree takes on disk, each file once; stops counting beyond `enough`."""
    total = 0
    waiting = [str(path)]
    while waiting and (enough is None or total <= enough):
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            continue  # it went while we looked
    return total


def _note_ready(path: Path, size: int) -> None:
    """Mark an environment as complete, or note its size anew: the file stays, since its locks are others'.

    Raises:
        OSError: that cannot be.
    """
    with open(os.open(path / _READY, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC)) as mark:
        os.fchmod(mark.fileno(), 0o644)
    with open(os.open(path / _READY, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC), "w") as mark:
        mark.write(str(size))


def _protect(path: Path, *, is_open: bool = False) -> None:
    """Make an environment read-only, or its directories writable again for whoever made it."""
    for directory, _folders, files in os.walk(path):
        os.chmod(directory, 0o755 if is_open else 0o555)
        for name in files if not is_open else ():
            file = os.path.join(directory, name)
            if not os.path.islink(file):
                os.chmod(file, 0o555 if os.stat(file).st_mode & 0o100 else 0o444)
