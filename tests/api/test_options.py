"""Options of tasks that reach the worker: files, sandboxes, digits."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pcompute import BadValue, MeshExecutor, TaskOptions, UsageError
from p2pcompute.api import files
from p2pcompute.api.files import REMEMBERED_MAX, SETTLED_S, SentFile, Taker, digest_of_file
from p2pcompute.api.result_content import place_file
from p2pcompute.api.shell import start_commands
from p2pcompute.host.interfaces import BlobRef
from tests.sandboxes import need_sandbox


def shout(path: str) -> str:
    """Writes beside what it reads."""
    text = Path(path).read_text()
    Path("loud.txt").write_text(text.upper())
    return path


def read(path: object) -> str:
    return Path(str(path)).read_text()


def listing() -> list[str]:
    return sorted(str(Path(folder, name)) for folder, _, names in os.walk(".") for name in names)


def test_files_go_along_and_come_back(executor: MeshExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: a function finds no file of this machine, or what it writes is lost."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    away = tmp_path / "away" / "b.txt"
    away.parent.mkdir()
    away.write_text("b")
    changed = executor.with_options(send=["{}"], fetch=["loud.txt"])
    near, far = changed.submit(shout, "in/a.txt"), changed.submit(shout, str(away))
    assert near.result(20) == "in/a.txt" and near.files == {"loud.txt": str(tmp_path / "loud.txt")}
    assert far.result(20) == "b.txt", "an argument that is sent is called as it is there"
    assert (tmp_path / "loud.txt").read_text() in ("A", "B")
    assert list(changed.map(shout, ["in/a.txt", str(away)])) == ["in/a.txt", "b.txt"]


def test_folders_and_calls_that_wait(executor: MeshExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: of a folder some is missing, or files are forgotten when arguments are futures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "inner").mkdir(parents=True)
    for name in ("x", "inner/y"):
        (tmp_path / "data" / name).write_text(name)
    changed = executor.with_options(send=["data"])
    assert changed.submit(listing).result(20) == ["data/inner/y", "data/x"]
    first = executor.submit(str, "data/x")
    assert changed.submit(read, first).result(20) == "x"


@pytest.mark.parametrize(
    ("options", "argument", "said"),
    [
        ({"send": ["missing"]}, "a", "missing cannot be sent"),
        ({"send": ["{}"]}, None, "first argument"),
        ({"fetch": ["none.txt"]}, "a", "none.txt"),
    ],
)
def test_files_that_are_not_there(
    executor: MeshExecutor, options: dict[str, list[str]], argument: object, said: str
) -> None:
    """Broken: the error does not name the file."""
    with pytest.raises(Exception, match=said):
        executor.with_options(**options).submit(str, argument).result(20)


def test_what_cannot_be_used() -> None:
    """Broken: a mistyped option is taken."""
    for bad in (
        {"send": "a.txt"},
        {"fetch": ["../x"]},
        {"sandbox": "wasm"},
        {"network": "some"},
        {"equal": 0},
        {"equal": "about"},
        {"key": 3},
    ):
        with pytest.raises(BadValue):
            TaskOptions(**bad)
    with pytest.raises(BadValue, match="max_workers=4"):
        MeshExecutor(4)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no group 'elsewhere'"):
        MeshExecutor("elsewhere")


def test_commands_are_told_the_names_of_files(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: a command gets the path that a file has here, which is no file there."""
    path = tmp_path / "a b.txt"
    path.write_text("text")
    options = TaskOptions()
    (done,) = start_commands(
        executor,
        "cat {} > {}.out",
        [path],
        send=["{}"],
        fetch=["{}.out"],
        to=tmp_path / "to",
        options=options,
        name=None,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.files["a b.txt.out"]).read_text() == "text"
    with pytest.raises(UsageError, match="equal= is for functions"):
        start_commands(executor, "true", None, send=(), fetch=(), to=".", options=TaskOptions(equal=3), name=None)


def test_digits(executor: MeshExecutor) -> None:
    """Broken: results of two nodes differ in a last bit and are never the same."""
    assert executor.with_options(equal=3).submit(lambda: [1 / 3, {"x": 2 / 3}]).result(20) == [0.333, {"x": 0.667}]


def test_sandbox(executor: MeshExecutor) -> None:
    """Broken: a call that was to be shut in sees the user's files."""
    need_sandbox()
    boxed = executor.with_options(sandbox="sandbox")
    assert boxed.submit(os.path.exists, str(Path(__file__))).result(30) is False
    with pytest.raises(Exception, match="cannot leave the sandbox as data"):
        boxed.submit(lambda: os.stat_result).result(30)


def test_a_file_is_remembered_once_it_has_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: what was written within one step of the file system's clock goes along as it was before."""
    pins: list[BlobRef] = []

    def put(path: str) -> BlobRef:
        content = Path(path).read_bytes()
        pins.append(BlobRef(hashlib.sha256(content).digest(), len(content)))
        return pins[-1]

    taker, file = Taker(put, pins.remove), SentFile(str(tmp_path / "in"), "in")
    now = time.time()
    found = []
    for text in ("1", "2"):
        Path(file.path).write_text(text)
        os.utime(file.path, (now, now))
        found.append(taker.take(file, pins.extend).blob)
        assert digest_of_file(file) == found[-1].digest
    assert found[0] != found[1] and pins == found, "each is pinned for its task only"
    os.utime(file.path, (now - 2 * SETTLED_S,) * 2)  # which says nothing of when it was written
    before = len(pins)
    assert taker.take(file, pins.extend).blob == found[1] and len(pins) == before + 1, "it is not remembered"
    monkeypatch.setattr(files, "SETTLED_S", -60.0)
    for count in (2, 1):
        before = len(pins)
        taker.take(file, pins.extend)
        assert len(pins) == before + count
    for number in range(REMEMBERED_MAX):
        other = tmp_path / str(number)
        other.write_text(f"other {number}")
        taker.take(SentFile(str(other), "in"), lambda _refs: None)
    assert len(pins) == 2 + 1 + 2 + REMEMBERED_MAX, "of each of the last ones one more, of the first none"


def test_a_settled_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: each of many calls that are sent a large file reads all of it for its key; or a change goes unseen."""
    file = SentFile(str(tmp_path / "in"), "in")
    read: list[str] = []
    digest = files._digest
    monkeypatch.setattr(files, "_digest", lambda path: (read.append(path), digest(path))[1])
    for settled_s, reads in ((SETTLED_S, 2), (-60.0, 1)):
        monkeypatch.setattr(files, "SETTLED_S", settled_s)
        Path(file.path).write_text(f"text {reads}")
        before = len(read)
        assert digest_of_file(file) == digest_of_file(file) == hashlib.sha256(f"text {reads}".encode()).digest()
        assert len(read) == before + reads
    status = os.stat(file.path)
    Path(file.path).write_text("other1")
    os.utime(file.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest_of_file(file) == hashlib.sha256(b"other1").digest(), "the time of its content was set back"


def test_files_of_one_name_come_back_at_once(tmp_path: Path) -> None:
    """Broken: two calls that bring the same name back stumble over one another's half a file."""
    name = "out/" + "n" * 200
    with ThreadPoolExecutor(8) as pool:
        contents = [bytes([number]) * (1 << 16) for number in range(64)]
        paths = set(pool.map(lambda content: place_file(tmp_path, name, content, 0o640), contents))
    (path,) = paths
    assert path.read_bytes() in contents and path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("instead", ["sleep 60", "exit 1"])
def test_a_command_that_has_failed_is_tried_again_with_its_files(
    executor: MeshExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instead: str
) -> None:
    """Broken: what was sent with it is gone by then."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("text")
    command = f"test -e {tmp_path}/go || {instead}; cat in"
    options = TaskOptions(timeout=1, retries=0)
    job = start_commands(executor, command, None, send=["in"], fetch=[], to=".", options=options, name=None)
    assert job.wait(20).failures() == [*job.futures]
    (tmp_path / "go").touch()
    assert job.retry_failed().futures[0].result(20).stdout == b"text"
