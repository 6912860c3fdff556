"""From words to tasks: what TARGET is, keys by content, names of files, checks before anything starts."""

from __future__ import annotations

import base64
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.api.result_keys import DoneKeys
from p2pcompute.cli.inputs import Row
from p2pcompute.cli.plan import (
    Chunker,
    Files,
    Function,
    Tally,
    TaskMaker,
    check_executable,
    check_fetch_names,
    check_local_files,
    find_sources,
    make_lines,
    name_in_task,
    read_target,
    what_varies,
)
from p2pcompute.errors import UsageError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["echo", "{}"], "command"),
        (["echo {}"], "shell"),
        (["sim.py::run"], "function"),
        (["a/b.py::C.run"], "function"),
        (["pkg.mod::run"], "function"),
        (["./x.sh"], "command"),
        (["a::b::c"], "command"),
        (["3a::b"], "command"),
        (["x.py"], "command"),
        (["a/x.wasm", "{}"], "wasm"),
        (["x.wasm {}"], "shell"),
        (["{}.wasm"], "command"),
    ],
)
def test_what_target_is(words: list[str], kind: str) -> None:
    assert read_target(words, "auto") == kind


def test_kind_overrules_the_guess() -> None:
    assert read_target(["echo", "a b"], "shell") == "shell"
    assert read_target(["a b"], "command") == "command"
    assert (read_target(["x"], "wasm"), read_target(["x.wasm"], "command")) == ("wasm", "command")
    with pytest.raises(UsageError, match="names no Python function"):
        read_target(["echo"], "python")


def test_flags_come_before_written_sources_and_stdin_is_the_last_resort(here: Path) -> None:
    Path("f").write_text("x\n")
    words, sources = find_sources(
        ["echo", ":::", "a"], arg_files=["f"], ranges="1..2", from_json=None, is_stdin_free=True
    )
    assert words == ["echo"] and [str(source.kind) for source in sources] == ["file", "range", "words"]
    _, sources = find_sources(["echo"], arg_files=[], ranges=None, from_json=None, is_stdin_free=True)
    assert [source.path for source in sources] == ["-"]
    _, sources = find_sources(["echo"], arg_files=[], ranges=None, from_json=None, is_stdin_free=False)
    assert sources == []
    for wrong in (["echo", "::::", "missing"], ["echo", "::::", "."], [":::", "a"]):
        with pytest.raises(UsageError):
            find_sources(wrong, arg_files=[], ranges=None, from_json=None, is_stdin_free=True)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.tif", "a/b.tif"),
        ("./a.tif", "a.tif"),
        ("/data/b.tif", "data/b.tif"),
        ("../../b.tif", "b.tif"),
        ("/data/./a/b.tif", "a/b.tif"),
    ],
)
def test_names_of_sent_files_stay_below_the_tasks_directory(path: str, name: str) -> None:
    assert name_in_task(path) == name


def test_a_sent_file_is_known_to_its_command_by_its_name_there(here: Path) -> None:
    Path("sub").mkdir()
    for name in ("a.tif", "sub/b.tif"):
        Path(name).write_text("x")
    maker = TaskMaker("command", ["magick", "{}", "{.}.png"], Files(send=["{}"], fetch=["{.}.png"]))
    assert maker.line(Row(("sub/b.tif",), ("sub/b.tif",)), 1) == {
        "inputs": ["sub/b.tif"],
        "send": [{"path": str(here / "sub/b.tif"), "name": "sub/b.tif"}],
        "fetch": ["sub/b.png"],
        "argv": ["magick", "sub/b.tif", "sub/b.png"],
    }
    line = maker.line(Row((str(here / "a.tif"),)), 1)
    inside = str(here / "a.tif").lstrip("/")
    assert line["argv"] == ["magick", inside, inside.replace(".tif", ".png")]
    assert line["inputs"] == [str(here / "a.tif")], "people see what they typed"


@pytest.mark.parametrize("pattern", ["/etc/x", "../x", "a/../../b", ""])
def test_files_to_fetch_must_be_below_the_tasks_directory(pattern: str) -> None:
    with pytest.raises(UsageError):
        TaskMaker("command", ["x"], Files(fetch=[pattern])).line(Row(("a",)), 1)


def test_a_directory_to_fetch_is_put_right() -> None:
    with pytest.raises(UsageError) as caught:
        TaskMaker("command", ["x"], Files(fetch=["{}/frames/"])).line(Row(("a",)), 1)
    assert caught.value.fix == "--fetch 'a/frames/**'"


def test_a_missing_file_to_send_is_named(here: Path) -> None:
    with pytest.raises(UsageError, match=r"'gone\.tif'"):
        TaskMaker("command", ["x", "{}"], Files(send=["{}"])).line(Row(("gone.tif",)), 1)


def key(words: list[str], *columns: str, kind: str = "command", seq: int = 1, **more: Any) -> str:
    maker = TaskMaker(kind, words, more.pop("files", Files()), with_keys=True, **more)
    return str(maker.line(Row(columns, columns), seq)["key"])


def test_a_key_is_the_same_exactly_when_the_task_is(here: Path) -> None:
    """Resume must neither skip a changed task nor repeat the same one because it moved."""
    Path("f").write_text("one")
    base = key(["echo", "{}"], "a")
    assert key(["echo", "{}"], "a", seq=9) == base, "its place does not matter"
    assert key(["echo"], "a") == base, "nor how the command was written"
    different = [
        key(["echo", "{}"], "b"),
        key(["echo", "{}", "x"], "a"),
        key(["echo {}"], "a", kind="shell"),
        key(["echo", "{}"], "a", env={"X": "1"}),
        key(["echo", "{}"], "a", files=Files(fetch=["o"])),
        key(["echo", "a", "{}"], ""),
        key(["echo", "{}"], "a", files=Files(send=["f"])),
        key(["echo", "{}"], "a", files=Files(share=["f"])),
        key(["echo", "{#}{}"], "a"),
        key(["echo", "{#}{}"], "a", seq=2),
    ]
    assert len({base, *different}) == len(different) + 1
    before = key(["cat", "{}"], "f", files=Files(send=["{}"]))
    Path("f").write_text("two")
    assert key(["cat", "{}"], "f", files=Files(send=["{}"])) != before, "another content is another task"


def test_functions_get_columns_as_arguments_and_json_items_as_they_are() -> None:
    function = Function("sim.py::f", b"code", None, b"k" * 32)
    maker = TaskMaker("function", ["sim.py::f"], Files(), function=function, with_keys=True)
    line = maker.line(Row(("1", "2"), ("1", "2")), 1)
    assert pickle.loads(base64.b64decode(line["args_b64"])) == (("1", "2"), {})
    assert line["argv"] == ["sim.py::f", "1", "2"]
    item = maker.line(Row(('{"x":1}',), ({"x": 1},)), 1)
    assert pickle.loads(base64.b64decode(item["args_b64"])) == (({"x": 1},), {})
    changed = Function("sim.py::f", b"", None, b"j" * 32)
    other = TaskMaker("function", ["sim.py::f"], Files(), function=changed, with_keys=True)
    assert other.line(Row(("1", "2"), ("1", "2")), 1)["key"] != line["key"], "changed code is another task"


def test_what_was_done_is_skipped_wherever_it_stands_now() -> None:
    maker = TaskMaker("command", ["echo"], Files(), with_keys=True)

    def keys(*words: str) -> set[bytes]:
        return {bytes.fromhex(maker.line(Row((word,)), 1)["key"]) for word in words}

    earlier = DoneKeys(done=keys("b", "d"), failed=keys("c"))
    rows = [Row((word,)) for word in ("new", "d", "c", "b", "a")]
    tally = Tally()
    assert [line["inputs"] for line in make_lines(iter(rows), maker, tally, earlier=earlier)] == [["new"], ["a"]]
    assert (tally.seen, tally.done_before, tally.failed_before, tally.failed_kept, tally.new) == (5, 2, 1, 1, 2)
    assert tally.text() == "resume: 2 of 5 already done, 1 failed before, 2 new"
    again = Tally()
    lines = make_lines(iter(rows), maker, again, earlier=earlier, retry_failed=True)
    assert [line["inputs"] for line in lines] == [["new"], ["c"], ["a"]]
    assert again.failed_kept == 0


def test_calls_are_put_together_and_their_keys_with_them() -> None:
    function = Function("s.py::f", b"", None, b"k" * 32)
    maker = TaskMaker("function", ["s.py::f"], Files(), function=function, with_keys=True)
    lines = [maker.line(Row((str(n),), (n,)), n) for n in range(5)]
    chunks = list(Chunker(2).chunks(iter(lines), lambda _condition, _limit: None))
    assert [chunk.get("chunk") for chunk in chunks] == [2, 2, 1]
    assert pickle.loads(base64.b64decode(chunks[0]["args_b64"])) == [((0,), {}), ((1,), {})]
    assert chunks[0]["key"] == lines[0]["key"] + lines[1]["key"] and chunks[0]["inputs"] == ["0", "1"]


def test_files_of_calls_that_are_put_together_go_along(here: Path) -> None:
    """Without them every call of a batch fails; and two files of one name cannot lie in one directory."""
    for path in ("a.txt", "x/b.txt", "y/b.txt"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(path)
    function = Function("s.py::f", b"", None, b"k" * 32)
    maker = TaskMaker("function", ["s.py::f"], Files(send=["{}"], fetch=["{}.out", "log"]), function=function)
    paths = ["a.txt", "x/./b.txt", "y/./b.txt", "a.txt"]
    lines = [maker.line(Row((path,), (path,)), seq) for seq, path in enumerate(paths, start=1)]
    chunks = list(Chunker(4).chunks(iter(lines), lambda _condition, _limit: None))
    assert [[file["name"] for file in chunk["send"]] for chunk in chunks] == [["a.txt", "b.txt"], ["b.txt", "a.txt"]]
    assert [file["path"] for file in chunks[1]["send"]] == [str(here / "y/./b.txt"), str(here / "a.txt")]
    assert chunks[0]["fetch"] == ["a.txt.out", "log", "b.txt.out"]


def test_automatic_chunks_follow_the_measured_time() -> None:
    function = Function("s.py::f", b"", None, b"k" * 32)
    maker = TaskMaker("function", ["s.py::f"], Files(), function=function)
    lines = [maker.line(Row((str(n),), (n,)), n) for n in range(1000)]
    chunker = Chunker(None)
    waited = []

    def wait(condition: Any, _limit: float) -> None:
        waited.append(condition())
        chunker.took({"runtime_s": 0.005})

    sizes = [chunk.get("chunk", 1) for chunk in chunker.chunks(iter(lines), wait)]
    assert waited == [False] and sizes[:16] == [1] * 16 and sizes[16] == 100 and sum(sizes) == 1000
    slow = Chunker(None)
    chunks = slow.chunks(iter(lines[:40]), lambda _condition, _limit: slow.took({"runtime_s": 2.0}))
    sizes = [chunk.get("chunk", 1) for chunk in chunks]
    assert sizes == [1] * 40, "long calls stay apart"


def test_programs_are_checked_as_far_as_this_machine_can_say(here: Path) -> None:
    script = Path("x.sh")
    script.write_text("#!/bin/sh\n")
    for words in (["./x.sh"], ["missing/x"], ["./."], ["x.sh"]):
        with pytest.raises(UsageError) as caught:
            check_executable(words, Files(), only_here=False)
        assert caught.value.code in ("not-executable", "not-found")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    check_executable(["./x.sh"], Files(), only_here=False)
    check_executable(["sh"], Files(), only_here=True)
    check_executable(["{}"], Files(), only_here=True)
    check_executable(["only-on-other-machines"], Files(), only_here=False)
    with pytest.raises(UsageError, match="no command"):
        check_executable(["only-on-other-machines"], Files(), only_here=True)
    with pytest.raises(UsageError, match="would not be found"):
        check_executable(["./x.sh"], Files(fetch=["o"]), only_here=False)
    check_executable(["./x.sh"], Files(share=["x.sh"]), only_here=False)


def test_a_script_that_is_no_program_is_put_right_at_once(here: Path) -> None:
    """If it broke: the first hint leads to the next error."""
    Path("sim.py").write_text("x")
    for name in ("sim.py", "./sim.py"):
        with pytest.raises(UsageError) as caught:
            check_executable([name, "{}"], Files(), only_here=False)
        assert caught.value.fix == "p2pc run python3 sim.py '{}', or a function in it: p2pc run sim.py::NAME"
    Path("sim.py").chmod(0o755)
    with pytest.raises(UsageError) as caught:
        check_executable(["sim.py"], Files(), only_here=False)
    assert caught.value.fix == "p2pc run ./sim.py"


def test_inputs_that_are_files_only_here_stop_the_run_before_it_starts(here: Path) -> None:
    """Otherwise every task on another machine fails for want of its file."""
    Path("a.tif").write_text("x")
    files = [Row(("a.tif",)), Row(("b.tif",))]
    with pytest.raises(UsageError) as caught:
        check_local_files(files, 2000, Files(), "magick")
    assert caught.value.what == "these 2 000 inputs are files only this machine has"
    assert caught.value.fix is not None and "--send {}" in caught.value.fix and "--local" in caught.value.fix
    check_local_files(files, 2, Files(send=["{}"]), "magick")
    check_local_files(files, 2, Files(share=["a.tif"]), "magick")
    check_local_files([Row(("1",)), Row(("2",)), Row(("a.tif",))], 3, Files(), "echo")
    check_local_files([], 0, Files(), "echo")


def test_files_of_different_tasks_do_not_come_back_under_one_name() -> None:
    """The second would overwrite the first, and nobody would know."""
    rows = [Row(("a/x.txt",)), Row(("b/x.txt",))]
    for pattern in ("res", "{/}.out", "{1/.}"):
        with pytest.raises(UsageError) as caught:
            check_fetch_names(rows, Files(fetch=[pattern]))
        assert caught.value.code == "fetch-name" and "--results" in str(caught.value.fix)
    check_fetch_names(rows, Files(fetch=["{}.out", "{#}.log", "*.png"]))
    check_fetch_names([rows[0], rows[0]], Files(fetch=["{/}.out"]))
    check_fetch_names(rows[:1], Files(fetch=["res"]))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["echo {} on $P2PC_NODE"], "$P2PC_NODE"),
        (["echo ${RANDOM}; sleep 1"], "${RANDOM}"),
        (["hostname"], "hostname"),
        (["x=$(date); echo $x {}"], "date"),
        (["cp {} out.{%}"], "{%}"),
        (["sort", "--date", "data/date.txt", "{date}", "hostname.py", "update", "$dates"], ""),
        (["sha256sum {} | cut -c1-8"], ""),
    ],
)
def test_what_is_another_on_each_node_is_seen(words: list[str], found: str) -> None:
    """People learn that members' results are compared when honest ones have lost their credit."""
    assert what_varies(words) == found
