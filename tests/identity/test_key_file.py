"""The key file: made once, for one machine and one user, never overwritten."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pcompute.errors import IdentityError
from p2pcompute.host.real_crypto import RealCrypto
from p2pcompute.identity.files import KEY_FILE, create_private, load_or_create_identity, read_private, replace_private
from p2pcompute.wire import cbor

CRYPTO = RealCrypto()


def load(directory: Path, machine_id: str = "here") -> bytes:
    return load_or_create_identity(directory, CRYPTO, machine_id=machine_id).public_key


def refused(directory: Path, machine_id: str = "here") -> IdentityError:
    """The error, after checking that the file is as it was and that the error helps."""
    path = directory / KEY_FILE
    before = path.read_bytes() if os.access(path, os.R_OK) and path.is_file() else None
    with pytest.raises(IdentityError) as caught:
        load(directory, machine_id)
    if before is not None:
        assert path.read_bytes() == before
    assert caught.value.what and caught.value.why and caught.value.fix
    return caught.value


def test_created_once_and_private(tmp_path: Path) -> None:
    """A restart makes another node, or others on the machine can read the key."""
    directory = tmp_path / "a" / "b"
    key = load(directory)
    assert load(directory) == key
    assert stat.S_IMODE((directory / KEY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert os.listdir(directory) == [KEY_FILE], "no temporary file stays"


def test_private_whatever_the_umask(tmp_path: Path) -> None:
    """A permissive umask makes the key readable."""
    before = os.umask(0)
    try:
        load(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


def test_starters_at_the_same_moment_agree(tmp_path: Path) -> None:
    """Two processes start with two keys, and one of them is lost."""
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: load(tmp_path), range(32)))
    assert len(set(keys)) == 1


def test_moved_to_another_machine(tmp_path: Path) -> None:
    """Two machines answer to one id."""
    key = load(tmp_path)
    error = refused(tmp_path, "there")
    assert error.what == "this identity belongs to another machine" and error.code == "identity-moved"
    assert load(tmp_path) == key
    assert error.fix is not None
    command = error.fix.split("here: ")[1].split(" (")[0]
    subprocess.run(command, shell=True, check=True)
    assert load(tmp_path, "there") != key, "the way out that the message names works"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777, 0o610])
def test_wide_permissions(tmp_path: Path, mode: int) -> None:
    """A key that others may have read is used as if nobody had."""
    key = load(tmp_path)
    (tmp_path / KEY_FILE).chmod(mode)
    error = refused(tmp_path)
    assert error.fix == f"run: chmod 600 {tmp_path / KEY_FILE}"
    subprocess.run(error.fix.removeprefix("run: "), shell=True, check=True)
    assert load(tmp_path) == key


def test_damaged_in_any_way(tmp_path: Path) -> None:
    """A damaged file is replaced by a new identity, or read as another key."""
    key = load(tmp_path)
    path = tmp_path / KEY_FILE
    good = path.read_bytes()
    broken = [b"", good[:-1], good + b"x", b"junk", cbor.encode([]), cbor.encode({"format": 1}), bytes(100_000)]
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 1
        broken.append(bytes(changed))
    for content in broken:
        path.write_bytes(content)
        refused(tmp_path)
    path.write_bytes(good)
    assert load(tmp_path) == key


def test_written_by_a_newer_version(tmp_path: Path) -> None:
    """A downgrade destroys the key."""
    load(tmp_path)
    body = cbor.decode((tmp_path / KEY_FILE).read_bytes())
    (tmp_path / KEY_FILE).write_bytes(cbor.encode(body | {"format": 2}))
    assert "newer" in refused(tmp_path).what


def test_not_a_plain_file(tmp_path: Path) -> None:
    """A directory or a pipe in its place hangs or crashes the start."""
    (tmp_path / KEY_FILE).mkdir()
    refused(tmp_path)
    (tmp_path / KEY_FILE).rmdir()
    os.mkfifo(tmp_path / KEY_FILE, 0o600)
    refused(tmp_path)


def test_directory_cannot_be_made(tmp_path: Path) -> None:
    """A read-only or wrong place ends in a traceback."""
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to another user")
def test_of_another_user(tmp_path: Path) -> None:
    """A node run by sudo takes the identity of the user, or the reverse."""
    load(tmp_path)
    os.chown(tmp_path / KEY_FILE, 12345, -1)
    assert "another user" in refused(tmp_path).what


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_unreadable(tmp_path: Path) -> None:
    """A key that we may not read ends in a traceback, or is made anew."""
    program = (
        "import os, sys\nfrom pathlib import Path\n"
        "from p2pcompute.errors import IdentityError\n"
        "from p2pcompute.identity.files import read_private\n"
        "os.setuid(12345)\n"
        "try:\n    read_private(Path(sys.argv[1]))\n"
        "except IdentityError as error:\n    print(error.what)\n"
    )
    path = tmp_path / KEY_FILE
    load(tmp_path)
    for parent in (tmp_path, *tmp_path.parents):
        if parent != Path("/tmp") and parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"cannot read {path}"


def test_a_left_over_of_a_crash_does_not_matter(tmp_path: Path) -> None:
    """After a crash in the middle of the first start the node cannot start any more."""
    (tmp_path / f".{KEY_FILE}.x.tmp").write_bytes(b"half")
    assert create_private(tmp_path / KEY_FILE, b"whole", unique="x")
    assert read_private(tmp_path / KEY_FILE) == b"whole"
    assert not create_private(tmp_path / KEY_FILE, b"other", unique="y"), "never overwritten"
    assert read_private(tmp_path / KEY_FILE) == b"whole"
    replace_private(tmp_path / KEY_FILE, b"new", unique="z")
    assert read_private(tmp_path / KEY_FILE) == b"new" and os.listdir(tmp_path) == [KEY_FILE]
