"""Options of tasks that reach the worker: files, sandboxes, digits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pcompute import BadValue, MeshExecutor, TaskOptions, UsageError
from p2pcompute.api.shell import start_commands
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
