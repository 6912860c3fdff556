"""The installation's key on disk, and other files that only its owner may read.

A key file is created once, atomically, with mode 0600, and never written again.  It is bound to the machine
on which it was made: two machines with one key would look like one node to everybody else, so a copy is
refused.  The binding guards against mistakes; somebody who can read the file can also change it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from p2pcompute.errors import IdentityError, ProtocolError
from p2pcompute.host.interfaces import Crypto
from p2pcompute.identity.keys import SEED_BYTES, Identity, create_identity
from p2pcompute.limits import PRIVATE_FILE_BYTES_MAX
from p2pcompute.wire import cbor

KEY_FILE: Final = "identity.cbor"
_FORMAT: Final = 1


def load_or_create_identity(directory: Path, crypto: Crypto, *, machine_id: str) -> Identity:
    """Return the installation's identity kept in `directory`; make it (and the directory) at first start.

    Two processes that start at the same moment get the same identity.

    Args:
        machine_id: any text that is stable on this machine and differs on others.

    Raises:
        IdentityError: the file is of another machine or user, readable by others, or damaged.  It was not
            changed.
    """
    path = directory / KEY_FILE
    data = read_private(path)
    if data is None:
        fresh = create_identity(crypto)
        body = {
            "format": _FORMAT,
            "machine": machine_id,
            "public": fresh.public_key,
            "seed": fresh.secret_seed(),
        }
        if create_private(path, cbor.encode(body), unique=fresh.public_key.hex()[:16]):
            return fresh
        data = read_private(path)
        if data is None:
            raise IdentityError(f"the key file {path} vanished", "another process removed it", "start again")
    return _parse(path, data, crypto, machine_id)


def _parse(path: Path, data: bytes, crypto: Crypto, machine_id: str) -> Identity:
    damaged = IdentityError(
        f"the key file {path} is damaged",
        "its content is not a key that belongs together",
        f"restore it from a backup, or move it away to get a new identity: mv {path} {path}.damaged",
    )
    try:
        body = cbor.decode(data)
    except ProtocolError as error:
        raise damaged from error
    if not isinstance(body, dict):
        raise damaged
    version = body.get("format")
    if isinstance(version, int) and version > _FORMAT:
        raise IdentityError(
            f"the key file {path} was written by a newer p2pc",
            f"format {version}, this build knows {_FORMAT}",
            "upgrade p2pc on this machine",
        )
    seed, public, machine = body.get("seed"), body.get("public"), body.get("machine")
    if version != _FORMAT or not isinstance(seed, bytes) or len(seed) != SEED_BYTES or not isinstance(machine, str):
        raise damaged
    identity = Identity(crypto, seed)
    if identity.public_key != public:
        raise damaged
    if machine != machine_id:
        raise IdentityError(
            "this identity belongs to another machine",
            f"{path} was made on a different one; two machines with one key would look like one node",
            f"move it away to get a new identity here: mv {path} {path}.other-machine"
            " (then join the group again with a new invitation)",
            code="identity-moved",
        )
    return identity


def read_private(
    path: Path, *, bytes_max: int = PRIVATE_FILE_BYTES_MAX, power: str = "can act as this node"
) -> bytes | None:
    """Return the content of a file that only we may read; None when there is none.

    Args:
        power: what somebody else could do with the content.

    Raises:
        IdentityError: it cannot be read, is not a plain file, is too large, or others have rights on it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        _check_private(path, os.fstat(descriptor), bytes_max, power)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(bytes_max)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)


def _check_private(path: Path, status: os.stat_result, bytes_max: int, power: str) -> None:
    """Refuse what is not a small plain file of ours alone."""
    if not stat.S_ISREG(status.st_mode):
        raise IdentityError(f"{path} is not a plain file", "something else has its name", f"run: ls -ld {path}")
    if status.st_uid != os.geteuid():
        raise IdentityError(
            f"{path} belongs to another user",
            f"its owner is uid {status.st_uid}, this process runs as uid {os.geteuid()}",
            "run p2pc as that user, or set P2PC_HOME to a directory of your own",
        )
    if status.st_mode & 0o077:
        raise IdentityError(
            f"others may read or change {path}",
            f"its mode is {stat.S_IMODE(status.st_mode):04o}; whoever has its content {power}",
            f"run: chmod 600 {path}",
        )
    if status.st_size > bytes_max:
        raise IdentityError(
            f"{path} is damaged",
            f"it has {status.st_size} bytes",
            f"restore it from a backup, or move it away: mv {path} {path}.damaged",
        )


def _unreadable(path: Path, error: OSError) -> IdentityError:
    return IdentityError(f"cannot read {path}", error.strerror or str(error), f"run: ls -ld {path.parent} {path}")


def create_private(path: Path, data: bytes, *, unique: str) -> bool:
    """Create a 0600 file with this content, durable and whole or not at all; False when the name is taken.

    Args:
        unique: text that no other writer of the same file uses, for the name of the temporary file.

    Raises:
        IdentityError: it cannot be written.
    """
    try:
        temporary = _write_temporary(path, data, unique)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    return True


def replace_private(path: Path, data: bytes, *, unique: str) -> None:
    """Write a 0600 file, durable and whole or not at all; the old content stays when it fails.

    Raises:
        IdentityError: it cannot be written.
    """
    try:
        temporary = _write_temporary(path, data, unique)
        try:
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def _write_temporary(path: Path, data: bytes, unique: str) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    # A left-over of a crash has no reader; O_EXCL then makes sure that nobody else put a file or link there.
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_directory(directory: Path) -> None:
    """Make a new name in a directory durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> IdentityError:
    return IdentityError(
        f"cannot write {path}",
        error.strerror or str(error),
        "make room or fix the rights of the directory, or set P2PC_HOME to another one",
    )
