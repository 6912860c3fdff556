"""Files of a task: inputs put into its directory, outputs found and moved out of it.

A task never gets a link to a blob, since its owner (and root in any case) could write through it: files that are sent
are copied (a reflink where the file system has them); shared ones are linked to one private copy per node, which is
compared afterwards.
"""

from __future__ import annotations

import errno
import os
import stat

from p2pcompute.execution.child_tasks import Job, Settings, Stop, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_COPY_BYTES = 1 << 20
_SHARED_TIME_NS = 1_000_000_000 * 10**9
"""Modification time of every shared file, so that a write to one shows."""
_SENT_TIME_NS = _SHARED_TIME_NS + 1
"""The same of every file that is sent along with a task whose outputs are what it has changed."""
_MAGIC = "*?["


def copy_file(source: str, target: str, mode: int) -> None:
    """Copy content; `target` must not exist.

    Raises:
        OSError: as of open, read and write.
    """
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if not _copy_in_kernel(reader, writer):
                while data := os.read(reader, _COPY_BYTES):
                    view = memoryview(data)
                    while view:
                        view = view[os.write(writer, view) :]
            os.fchmod(writer, mode)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_in_kernel(reader: int, writer: int) -> bool:
    """Copy by copy_file_range (shares extents on btrfs and XFS); False when nothing was copied that way."""
    copied = False
    try:
        while os.copy_file_range(reader, writer, 1 << 30):
            copied = True
    except (AttributeError, OSError) as error:
        if copied or getattr(error, "errno", 0) == errno.ENOSPC:
            raise
        return False
    return copied


class Inputs:
    """Puts a task's input files in place and checks the shared ones afterwards."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def place(self, directory: str, job: Job, task: Task) -> None:
        """Put shared and sent files into `directory`.

        Raises:
            Stop: NOT_RUN when a blob is missing or the disk is full, REFUSED when the names cannot coexist.
        """
        try:
            for name, source, mode, copy_name in job.share:
                self._share(self._target(directory, name), source, mode, copy_name)
            for name, source, mode in task.send:
                target = self._target(directory, name)
                copy_file(source, target, mode)
                if has_pattern(task.fetch):
                    os.utime(target, ns=(_SENT_TIME_NS, _SENT_TIME_NS))
        except FileNotFoundError as error:
            raise Stop("not-run", f"an input file is not on this node any more: {error.filename}") from error
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise Stop(
                "refused",
                f"two input files cannot both be in the task's directory: {os.path.relpath(error.filename, directory)} "
                "(the same name, or one is inside the other); send them under different names",
            ) from error
        except OSError as error:
            raise Stop("not-run", f"input files could not be put in place here: {error.strerror}") from error

    def _target(self, directory: str, name: str) -> str:
        target = os.path.join(directory, name)
        if "/" in name:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        return target

    def _share(self, target: str, source: str, mode: int, copy_name: str) -> None:
        private = os.path.join(self._settings.shared_directory, copy_name)
        try:
            os.link(private, target)
        except FileNotFoundError:
            draft = f"{private}.{os.getpid()}"
            copy_file(source, draft, mode & ~0o222)
            os.utime(draft, ns=(_SHARED_TIME_NS, _SHARED_TIME_NS))
            os.rename(draft, private)  # of two slots that do this at once the second wins; both copies are right
            os.link(private, target)

    def check(self, job: Job) -> str:
        """Return the reason when a task has changed a shared file; its private copy is then dropped.

        Only root and `chmod` can do that.
        """
        for name, source, mode, copy_name in job.share:
            private = os.path.join(self._settings.shared_directory, copy_name)
            try:
                now, blob = os.lstat(private), os.stat(source)
            except FileNotFoundError:
                continue
            same_content = (now.st_size, now.st_mtime_ns) == (blob.st_size, _SHARED_TIME_NS)
            if same_content and stat.S_IMODE(now.st_mode) == mode & ~0o222:
                continue
            os.unlink(private)
            return (
                f"the task changed the shared file {name!r} (tasks of a job use one copy of it); "
                "give each task its own: --send instead of --share"
            )
        return ""


def _open_directory(name: str, parent: int | None) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def _matches(directory: int, parts: list[str], prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name, lstat) of everything below `directory` that the pattern's parts name; links are not followed."""
    import fnmatch

    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _matches(directory, rest or ["*"], prefix)
    elif not any(char in part for char in _MAGIC):
        try:
            found = os.stat(part, dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not rest:
            yield prefix + part, found
        elif stat.S_ISDIR(found.st_mode):
            yield from _descend(directory, part, rest, prefix)
        return
    for name in sorted(os.listdir(directory)):
        if name.startswith(".") and not part.startswith("."):
            continue
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if part == "**":
            if stat.S_ISDIR(found.st_mode):
                yield from _descend(directory, name, parts, prefix)
        elif fnmatch.fnmatchcase(name, part):
            if not rest:
                yield prefix + name, found
            elif stat.S_ISDIR(found.st_mode):
                yield from _descend(directory, name, rest, prefix)


def _descend(directory: int, name: str, parts: list[str], prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    fd = _open_directory(name, directory)
    try:
        yield from _matches(fd, parts, f"{prefix}{name}/")
    finally:
        os.close(fd)


def _unfit(name: str, mode: int) -> str:
    """Say why a file that was named outright cannot be fetched."""
    if stat.S_ISDIR(mode):
        return f"the output {name!r} is a directory (only files are brought back); fetch its files: --fetch '{name}/**'"
    kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
    return f"the output {name!r} is {kind} (only regular files are brought back); let the task write a file"


def has_pattern(names: tuple[str, ...]) -> bool:
    """Return whether any of these is a glob."""
    return any(char in name for name in names for char in _MAGIC)


def find_outputs(
    directory: str, patterns: tuple[str, ...], files_max: int, *, inputs: frozenset[str] = frozenset()
) -> dict[str, os.stat_result]:
    """Return the regular files that the patterns name, by name relative to `directory`.

    A pattern is a name or a glob with `*`, `?`, `[…]` and `**`; as in a shell, `*` does not match a leading dot.  Of
    the `inputs` a glob names those that the task has changed: ``**`` is what the task has made of its directory.

    Raises:
        Stop: a pattern leaves the directory, matches nothing or too much, or names something else than a file.
    """
    found: dict[str, os.stat_result] = {}
    root = _open_directory(directory, None)
    try:
        for pattern in patterns:
            parts = [part for part in pattern.split("/") if part not in ("", ".")]
            if pattern.startswith("/") or ".." in parts or not parts:
                raise Stop(
                    "failed",
                    f"the output {pattern!r} is not below the task's directory (it must be a relative name without "
                    "'..'); write the output into the current directory",
                    "always",
                )
            is_name = not any(char in pattern for char in _MAGIC)
            has_match = False
            try:
                for name, entry in _matches(root, parts, ""):
                    if not is_name and name in inputs and entry.st_mtime_ns in (_SHARED_TIME_NS, _SENT_TIME_NS):
                        continue
                    if stat.S_ISREG(entry.st_mode):
                        has_match = True
                        found[name] = entry
                    elif is_name:
                        raise Stop("failed", _unfit(name, entry.st_mode))
                    if len(found) > files_max:
                        raise Stop(
                            "failed",
                            f"more than {files_max} output files (the limit of one task); let the task pack them: tar",
                        )
            except (OSError, RecursionError) as error:
                text = f"the outputs for {pattern!r} cannot be listed ({error}); check what the task leaves behind"
                raise Stop("failed", text) from error
            if not has_match:
                raise Stop(
                    "failed",
                    f"no output file matches {pattern!r} (the task ended well but did not write it); "
                    "check the name given to --fetch and what the task writes",
                    "always",
                )
    finally:
        os.close(root)
    return found


def move_out(directory: str, name: str, entry: os.stat_result, target: str) -> None:
    """Move an output file to `target`; copy it when it has another name somewhere (shared input, hard link).

    Raises:
        Stop: it changed, cannot be read, or the disk is full.
    """
    path = os.path.join(directory, name)
    try:
        if entry.st_nlink == 1 and entry.st_uid == os.geteuid():
            os.rename(path, target)
            now = os.lstat(target)
            if not stat.S_ISREG(now.st_mode) or now.st_nlink != 1:
                os.unlink(target)
                raise Stop("failed", f"the output {name!r} was replaced while it was collected")
            os.chmod(target, 0o600)
        else:
            copy_file(path, target, 0o600)
    except OSError as error:
        raise Stop("failed", f"the output {name!r} cannot be brought back: {error.strerror}") from error
