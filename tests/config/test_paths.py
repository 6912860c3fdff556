"""Places on this machine: the socket, the machine's id, file systems that do not fit."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcompute.errors import ConfigError, NodeUnavailable, StoreError
from p2pcompute.host.paths import check_store_directory, machine_id, prepare_directories, resolve_paths
from p2pcompute.places import SOCKET_PATH_BYTES_MAX, find_paths

RAW_ID = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose name is short enough for a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield Path(folder)


def test_socket_in_the_runtime_directory_of_ours(short: Path) -> None:
    """The socket is where no other program looks, or in a directory of the user before sudo."""
    environ = {"HOME": str(short), "XDG_RUNTIME_DIR": str(short / "run")}
    assert resolve_paths(environ).socket.is_relative_to(short / ".local"), "there is none"
    (short / "run").mkdir()
    assert resolve_paths(environ).socket == short / "run" / "p2pc" / "node.sock"
    if os.geteuid() == 0:
        os.chown(short / "run", 12345, -1)
        assert resolve_paths(environ).socket.is_relative_to(short / ".local")
    assert resolve_paths(environ | {"P2PC_SOCKET": "/tmp/own.sock"}).socket == Path("/tmp/own.sock")


def test_long_socket_paths_move(tmp_path: Path) -> None:
    """A deep home directory makes the node fail at bind, or two such nodes share a socket."""
    homes = [tmp_path / ("x" * 120) / str(number) for number in range(2)]
    found = [resolve_paths({"P2PC_HOME": str(home)}).socket for home in homes]
    again = [resolve_paths({"P2PC_HOME": str(home)}).socket for home in homes]
    try:
        assert found == again and found[0] != found[1]
        for path in found:
            assert path.parent.parent == Path("/tmp") and len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(path))
            path.unlink()
    finally:
        for path in found:
            path.parent.rmdir()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_home_that_others_may_write_to_is_refused(short: Path, mode: int) -> None:
    """Another user plants a key, a group or a socket there."""
    environ = {"P2PC_HOME": str(short)}
    assert resolve_paths(environ).state == short
    short.chmod(mode)
    with pytest.raises(ConfigError) as refused:
        find_paths(environ)
    assert refused.value.code == "home-owner" and refused.value.why and refused.value.fix
    short.chmod(0o750)
    (short / "run").mkdir()
    (short / "run").chmod(mode)
    with pytest.raises(NodeUnavailable) as shared:
        find_paths(environ)
    assert shared.value.code == "socket-owner"
    find_paths(environ | {"P2PC_SOCKET": "/tmp/own.sock"})
    (short / "run").rmdir()
    (short / "elsewhere").mkdir(mode=0o700)
    (short / "run").symlink_to(short / "elsewhere")
    with pytest.raises(NodeUnavailable, match="symbolic link"):
        resolve_paths(environ)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory away")
def test_a_home_of_another_user_is_refused(short: Path) -> None:
    """Its owner answers in our place, or reads what our node keeps."""
    os.chown(short, 12345, -1)
    with pytest.raises(ConfigError, match="12345"):
        find_paths({"P2PC_HOME": str(short)})


def test_a_planted_socket_directory_is_refused(tmp_path: Path) -> None:
    """Another user of the machine makes the directory first and answers in our place."""
    environ = {"P2PC_HOME": str(tmp_path / ("x" * 120))}
    directory = resolve_paths(environ).socket.parent
    try:
        directory.chmod(0o777)
        with pytest.raises(NodeUnavailable) as caught:
            resolve_paths(environ)
        assert caught.value.code == "socket-owner" and caught.value.fix
        directory.rmdir()
        directory.symlink_to(tmp_path)
        with pytest.raises(NodeUnavailable):
            resolve_paths(environ)
        directory.unlink()
        if os.geteuid() == 0:
            directory.mkdir(mode=0o700)
            os.chown(directory, 12345, -1)
            with pytest.raises(NodeUnavailable):
                resolve_paths(environ)
    finally:
        if directory.is_symlink():
            directory.unlink()
        elif directory.exists():
            directory.rmdir()


def test_machine_id_of_the_system(tmp_path: Path) -> None:
    """The id changes from start to start, or gives the system's own away."""
    file = tmp_path / "machine-id"
    file.write_text(RAW_ID + "\n")
    first = machine_id(tmp_path / "state", (tmp_path / "none", file))
    assert first == machine_id(tmp_path / "other", (file,)) != RAW_ID and len(first) == 32
    file.write_text(RAW_ID[::-1] + "\n")
    assert machine_id(tmp_path / "state", (file,)) != first
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("content", ["", "uninitialized\n", "x" * 32, RAW_ID + "0"])
def test_machine_id_made_where_there_is_none(tmp_path: Path, content: str) -> None:
    """In a container all nodes have the id of an empty file."""
    file = tmp_path / "machine-id"
    file.write_text(content)
    first = machine_id(tmp_path / "a", (file,))
    assert machine_id(tmp_path / "a", (file,)) == first != machine_id(tmp_path / "b", (file,))
    assert os.listdir(tmp_path / "a") == ["machine-id"]
    (tmp_path / "a" / "machine-id").write_text("junk")
    with pytest.raises(ConfigError):
        machine_id(tmp_path / "a", (file,))
    (tmp_path / "plain").write_text("")
    with pytest.raises(ConfigError):
        machine_id(tmp_path / "plain" / "below", (file,))


MOUNTS = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /proc rw - proc proc rw
30 21 0:50 / /home rw,relatime shared:2 - nfs4 filer:/home rw,vers=4.2
31 30 8:2 / /home/local rw - xfs /dev/sdb rw
32 21 0:51 / /mnt/my\040share rw - cifs //box/share rw
33 21 0:52 / /over rw - nfs filer:/x rw
34 33 8:3 / /over rw - ext4 /dev/sdc rw
broken line
"""


@pytest.mark.parametrize("path", ["/home/u/.local/share/p2pc", "/home", "/mnt/my share/x"])
def test_network_file_systems_are_refused(path: str) -> None:
    """The database in a shared home directory is damaged after weeks."""
    with pytest.raises(StoreError) as caught:
        check_store_directory(Path(path), mounts=MOUNTS)
    assert caught.value.code == "store-network" and caught.value.fix is not None and "P2PC_HOME" in caught.value.fix


@pytest.mark.parametrize("path", ["/var/lib", "/home/local/p2pc", "/homely", "/mnt/my share2", "/over/x", "/"])
def test_local_file_systems_are_not(path: str) -> None:
    """A local disk is refused because something near it is remote."""
    check_store_directory(Path(path), mounts=MOUNTS)
    check_store_directory(Path(path), mounts="")


def test_directories_are_private(short: Path) -> None:
    """Others on the machine can list what is stored."""
    paths = resolve_paths({"P2PC_HOME": str(short / "home")})
    prepare_directories(paths)
    prepare_directories(paths)
    for directory in (paths.data, paths.store, paths.state, paths.socket.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    (short / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        prepare_directories(resolve_paths({"P2PC_HOME": str(short / "file")}, machine_id_files=(_id_file(short),)))
    assert caught.value.fix


def _id_file(folder: Path) -> Path:
    (folder / "id").write_text(RAW_ID)
    return folder / "id"
