"""Results on disk: GNU parallel's bytes, whole folders, nothing twice and nothing lost after a crash."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.api.result_claims import check_claims
from p2pcompute.api.result_keys import JOBLOG_HEADER, command_key, content_key, read_done_keys
from p2pcompute.api.result_rows import joblog_line
from p2pcompute.api.result_target import ResultsTarget, check_target
from p2pcompute.api.results import ResultsWriter, folder_name
from p2pcompute.api.shown_values import shown_value
from p2pcompute.errors import StoreError, UsageError

JOB = {"id": "aa" * 32, "alias": "j7k3", "name": "test"}


def task(index: int, **more: Any) -> dict[str, Any]:
    return {
        "index": index,
        "generation": 0,
        "inputs": [f"in{index}"],
        "command": f"echo in{index}",
        "state": "done",
        "node": "nova",
        "attempts": 1,
        "status": "ok",
        "exit_code": 0,
        "signal": None,
        "error": None,
        "started": "2026-11-21T10:00:00.500000Z",
        "runtime_s": 0.25,
        "key": content_key("t", str(index)).hex(),
        **more,
    }


def write_all(writer: ResultsWriter, count: int, **more: Any) -> int:
    return sum(writer.write(task(index, **more), stdout=f"out{index}\n".encode(), stderr=b"") for index in range(count))


def test_joblog_lines_are_those_of_gnu_parallel() -> None:
    """Bytes as GNU parallel 20221122 wrote them for these values."""
    assert JOBLOG_HEADER == "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"
    line = joblog_line(
        seq=1,
        host=":",
        started=1795302106.643,
        runtime_s=0.014,
        sent=0,
        received=6,
        exit_code=0,
        signal=9,
        command='sleep 0.011; echo "x\ny" 1; kill -9 $$',
    )
    assert line == '1\t:\t1795302106.643\t     0.014\t0\t6\t0\t9\tsleep 0.011; echo "x\0y" 1; kill -9 $$\n'
    long = joblog_line(
        seq=1234567,
        host="nova",
        started=1.0,
        runtime_s=123456789.1234,
        sent=1,
        received=2,
        exit_code=-1,
        signal=15,
        command="x",
    )
    assert long == "1234567\tnova\t1.000\t123456789.123\t1\t2\t-1\t15\tx\n"


def test_a_directory_holds_everything_of_every_task(tmp_path: Path) -> None:
    target = ResultsTarget(dir=tmp_path / "out", joblog=tmp_path / "log")
    blob = tmp_path / "blob"
    blob.write_bytes(b"big")
    writer = ResultsWriter.create(target, JOB)
    assert writer.write(
        task(1001, inputs=["a b", "c"]), stdout=blob, stderr=b"e", value=b"v", files=[("d/x.png", b"png", 0o600)]
    )
    assert writer.write(task(0, state="failed", exit_code=3, status="failed"))
    assert writer.write(task(2, state="failed", exit_code=None, signal=None, status="timeout"))
    assert writer.write(task(3, state="failed", exit_code=None, signal=9, status="died"))
    assert writer.write(task(4, state="failed", exit_code=None, status="failed", command="sim.py::f 4"))
    writer.close({"state": "failed"})
    folder = tmp_path / "out/tasks/001/001001"
    assert folder == tmp_path / "out" / folder_name(1001)
    content = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    meta = json.loads(content.pop("meta.json"))
    assert content == {
        "args": b"a b\nc\n",
        "stdout": b"big",
        "stderr": b"e",
        "value.pickle": b"v",
        "files/d/x.png": b"png",
    }
    assert (folder / "files/d/x.png").stat().st_mode & 0o777 == 0o600
    assert meta["files"] == [{"name": "d/x.png", "size": 3}] and meta["stdout_bytes"] == 3
    log = (tmp_path / "out/joblog").read_text().splitlines()
    assert log == (tmp_path / "log").read_text().splitlines()
    assert [line.split("\t")[0] + ":" + ":".join(line.split("\t")[5:8]) for line in log[1:]] == [
        "1002:6:0:0",
        "1:0:3:0",
        "3:0:-1:15",
        "4:0:0:9",
        "5:0:1:0",
    ]
    assert json.loads((tmp_path / "out/summary.json").read_text())["state"] == "failed"
    assert json.loads((tmp_path / "out/job.json").read_text())["schema"] == "p2pc.job/1"


def test_writing_again_changes_nothing_but_a_retry_does(tmp_path: Path) -> None:
    target = ResultsTarget(dir=tmp_path / "out")
    writer = ResultsWriter.create(target, JOB)
    assert writer.write(task(0, state="failed", exit_code=1), stdout=b"bad")
    assert not writer.write(task(0), stdout=b"other")
    assert writer.is_written(0) and not writer.is_written(0, 1)
    assert writer.write(task(0, generation=1), stdout=b"good")
    writer.close()
    assert (tmp_path / "out/tasks/000/000000/stdout").read_bytes() == b"good"
    truth = (tmp_path / "out/tasks.jsonl").read_text().splitlines()
    assert [json.loads(line)["state"] for line in truth] == ["failed", "done"]
    assert sorted(path.name for path in (tmp_path / "out/tasks/000").iterdir()) == ["000000"]


@settings(max_examples=40)
@given(data=st.data())
def test_a_crash_anywhere_loses_and_doubles_nothing(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The process may die between any two writes, and in the middle of a line or a folder."""
    root = tmp_path_factory.mktemp("crash")
    target = ResultsTarget(dir=root / "out", joblog=root / "log")
    writer = ResultsWriter.create(target, JOB)
    done = data.draw(st.integers(0, 4))
    write_all(writer, done)
    writer.close()
    for name in ("tasks.jsonl", "joblog"):
        path = root / "out" / name
        whole = path.read_bytes()
        floor = 0 if name == "tasks.jsonl" else len(JOBLOG_HEADER)
        path.write_bytes(whole[: data.draw(st.integers(min(floor, len(whole)), len(whole)))])
    (root / f"out/tasks/000/.{done:06d}.part").mkdir(parents=True)
    (root / f"out/tasks/000/.{done:06d}.part/stdout").write_bytes(b"half")
    if done and data.draw(st.booleans()):
        (root / "out/tasks/000/000000/stdout").write_bytes(b"")  # what a power failure may leave
    writer = ResultsWriter.reopen(target, JOB)
    write_all(writer, 5)
    writer.close({})
    lines = [json.loads(line) for line in (root / "out/tasks.jsonl").read_text().splitlines()]
    assert {line["index"] for line in lines} == set(range(5))
    for index in range(5):
        assert (root / f"out/tasks/000/{index:06d}/stdout").read_text() == f"out{index}\n"
    assert sorted(path.name for path in (root / "out/tasks/000").iterdir()) == [f"{i:06d}" for i in range(5)]
    for log in (root / "out/joblog", root / "log"):
        seqs = [line.split("\t")[0] for line in log.read_text().splitlines()[1:]]
        assert {*seqs} == {"1", "2", "3", "4", "5"}
    shutil.rmtree(root)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
@settings(max_examples=15)
@given(data=st.data())
def test_one_file_survives_a_torn_end(
    suffix: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("file")
    target = ResultsTarget(file=root / f"o.{suffix}")
    assert target.file is not None
    writer = ResultsWriter.create(target, JOB)
    for index in range(3):
        writer.write(task(index), stdout=f'a,"b"\n{index}\n'.encode(), stderr=b'"')
    writer.close()
    whole = target.file.read_bytes()
    target.file.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    writer = ResultsWriter.reopen(target, JOB)
    for index in range(3):
        writer.write(task(index), stdout=f'a,"b"\n{index}\n'.encode(), stderr=b'"')
    writer.close()
    if suffix == "jsonl":
        rows = [json.loads(line) for line in target.file.read_text().splitlines()]
        assert [(row["index"], row["stdout"], row["stderr"]) for row in rows] == [
            (i, f'a,"b"\n{i}\n', '"') for i in range(3)
        ]
    else:
        content = io.StringIO(target.file.read_bytes().decode())
        table = list(csv.reader(content, delimiter="," if suffix == "csv" else "\t"))
        assert table[0][:9] == JOBLOG_HEADER.split()
        assert [(row[0], row[-3:]) for row in table[1:]] == [
            (str(i + 1), [f"in{i}", f'a,"b"\n{i}\n', '"']) for i in range(3)
        ]
    shutil.rmtree(root)


def test_csv_is_byte_for_byte_that_of_gnu_parallel(tmp_path: Path) -> None:
    target = ResultsTarget(file=tmp_path / "o.csv")
    writer = ResultsWriter.create(target, JOB)
    writer.write(
        task(0, node=":", started=1795302106.792, runtime_s=0.003, inputs=["a", 'x,"y'], command="echo a 'x,\"y'"),
        stdout=b'a x,"y\n',
    )
    writer.close()
    assert (tmp_path / "o.csv").read_text() == (
        "Seq,Host,Starttime,JobRuntime,Send,Receive,Exitval,Signal,Command,V1,V2,Stdout,Stderr\n"
        '1,:,1795302106.792,0.003,0,7,0,0,"echo a \'x,""y\'",a,"x,""y","a x,""y\n",\n'
    )


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_of_a_function_has_its_values(suffix: str, tmp_path: Path) -> None:
    """Nothing is unpickled: the process that writes may be the node, and values are those of other nodes."""
    path = tmp_path / f"o.{suffix}"
    job = JOB | {"kind": "function"}
    writer = ResultsWriter.create(ResultsTarget(file=path), job)
    writer.write(task(0), stdout=b"said\n", value=pickle.dumps(3.14159, 5))
    writer.write(task(1), value=cloudpickle.dumps({"a": [1, (2, "x,\ty")], "b": None}))
    writer.close()
    writer = ResultsWriter.reopen(ResultsTarget(file=path), JOB)
    writer.write(task(2, chunk=2), value=pickle.dumps(["one", 2], 5))
    writer.write(task(3, state="failed"), value=pickle.dumps(ValueError("no"), 5))
    writer.write(task(4), value=pickle.dumps(Path("x"), 5))
    writer.write(task(5), value=pickle.dumps(Path("x"), 5), value_text="x")
    writer.close()
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="," if suffix == "csv" else "\t"))
    assert rows[0]["Stdout"] == "said\n"
    assert [row["Value"] for row in rows if row["Seq"] != "5"] == [
        "3.14159",
        '{"a": [1, [2, "x,\\ty"]], "b": null}',
        "one\n2",
        "",
        "x",
    ]
    assert "not shown here" in rows[4]["Value"]


def test_json_lines_of_a_function_have_its_values(tmp_path: Path) -> None:
    writer = ResultsWriter.create(ResultsTarget(file=tmp_path / "o.jsonl"), JOB | {"kind": "function"})
    writer.write(task(0), value=pickle.dumps([1, "two"], 5))
    writer.write(task(1), value=pickle.dumps(Path("x"), 5), value_text="x")
    writer.close()
    first, second = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    assert first["value"] == [1, "two"] and second["value_text"] == "x" and "value" not in second


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(_PLAIN)
def test_plain_values_are_shown_as_they_are(value: Any) -> None:
    assert shown_value(pickle.dumps(value, 5), is_chunk=False)[0] == json.dumps(value, ensure_ascii=False)


@given(st.binary(max_size=200))
def test_no_value_harms_who_shows_it(data: bytes) -> None:
    assert shown_value(data, is_chunk=False)[1] is not None


def test_a_small_value_that_stands_for_a_huge_one_is_not_shown() -> None:
    huge: Any = ["x"]
    for _ in range(60):
        huge = [huge, huge]
    keyed: Any = ("x",)
    for _ in range(60):
        keyed = (keyed, keyed)
    endless: list[Any] = []
    endless.append(endless)
    key = pickle.dumps(keyed, 5)[2:-1]
    for data in (
        pickle.dumps(huge, 5),
        b"\x80\x05}" + key + b"Ns.",
        pickle.dumps(endless, 5),
        pickle.dumps("x" * 300_000),
    ):
        assert shown_value(data, is_chunk=False)[0] is None


@given(st.binary(max_size=200))
def test_any_output_survives_in_json(tmp_path_factory: pytest.TempPathFactory, output: bytes) -> None:
    import base64

    path = tmp_path_factory.mktemp("any") / "o.jsonl"
    writer = ResultsWriter.create(ResultsTarget(file=path), JOB)
    writer.write(task(0), stdout=output)
    writer.close()
    row = json.loads(path.read_text())
    assert (row["stdout"].encode() if "stdout" in row else base64.b64decode(row["stdout_b64"])) == output
    shutil.rmtree(path.parent)


def test_what_was_done_is_known_by_content(tmp_path: Path) -> None:
    target = ResultsTarget(dir=tmp_path / "out")
    writer = ResultsWriter.create(target, JOB)
    keys = [content_key("t", str(index)) for index in range(5)]
    writer.write(task(0))
    writer.write(task(1, state="failed", exit_code=1))
    writer.write(task(2, state="failed", exit_code=1))
    writer.write(task(2, generation=1))
    writer.write(task(3, state="cancelled"))
    writer.write(task(4, key=(keys[4] + content_key("more")).hex()))
    writer.close()
    with (tmp_path / "out/tasks.jsonl").open("a") as torn:
        torn.write('{"number": 9, "state": "done", "key": "')
    found = read_done_keys(tmp_path / "out")
    assert found.by == "content" and found.next_number == 5
    assert found.done == {keys[0], keys[2], keys[4], content_key("more")}
    assert found.failed == {keys[1]}
    assert read_done_keys(tmp_path / "nothing-yet").done == set()


def test_a_resumed_job_adds_after_what_is_there_and_replaces_what_failed(tmp_path: Path) -> None:
    first = ResultsWriter.create(ResultsTarget(dir=tmp_path / "out"), JOB)
    first.write(task(0), stdout=b"kept")
    first.write(task(1, state="failed", exit_code=1), stdout=b"bad")
    first.close({})
    number = read_done_keys(tmp_path / "out").next_number
    target = ResultsTarget(dir=tmp_path / "out", first=number, resume=True)
    again = ResultsWriter.create(target, {**JOB, "id": "bb" * 32})
    again.write(task(0, key=content_key("t", "1").hex()), stdout=b"good")
    again.write(task(1, key=content_key("new").hex()), stdout=b"new")
    again.close({})
    content = {path.parent.name: path.read_text() for path in (tmp_path / "out").rglob("stdout")}
    assert content == {"000000": "kept", "000001": "good", "000003": "new"}
    seqs = [line.split("\t")[0] for line in (tmp_path / "out/joblog").read_text().splitlines()[1:]]
    assert seqs == ["1", "2", "3", "4"], "no number of the joblog stands for two tasks"


def test_results_of_another_job_are_never_mixed_or_overwritten(tmp_path: Path) -> None:
    ResultsWriter.create(ResultsTarget(dir=tmp_path / "out"), JOB).close({})
    with pytest.raises(UsageError, match="already holds results"):
        ResultsWriter.create(ResultsTarget(dir=tmp_path / "out"), JOB)
    (tmp_path / "o.csv").write_text("precious")
    with pytest.raises(UsageError, match="already holds results"):
        ResultsWriter.create(ResultsTarget(file=tmp_path / "o.csv"), JOB)
    assert (tmp_path / "o.csv").read_text() == "precious"


def test_a_joblog_alone_is_begun_anew_or_carried_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for _ in range(2):
        writer = ResultsWriter.create(ResultsTarget(joblog=log), JOB)
        write_all(writer, 2)
        writer.close()
    assert len(log.read_text().splitlines()) == 3, "without --resume it starts over, as GNU parallel's does"
    found = read_done_keys(log)
    assert found.by == "command" and found.done == {command_key("echo in0"), command_key("echo in1")}
    writer = ResultsWriter.create(ResultsTarget(joblog=log, first=found.next_number, resume=True), JOB)
    write_all(writer, 1)
    writer.close()
    writer = ResultsWriter.reopen(ResultsTarget(joblog=log, first=found.next_number, resume=True), JOB)
    assert write_all(writer, 2) == 1, "after a crash the joblog itself says what is in it"
    writer.close()
    assert [line.split("\t")[0] for line in log.read_text().splitlines()[1:]] == ["1", "2", "3", "4"]
    with pytest.raises(UsageError, match="not a joblog"):
        read_done_keys(Path(__file__))


def test_files_without_a_directory_land_where_they_were_asked_for(tmp_path: Path) -> None:
    writer = ResultsWriter.create(ResultsTarget(files_dir=tmp_path), JOB)
    writer.write(task(0), files=[("a/b.png", b"x", 0o644)])
    writer.close()
    assert (tmp_path / "a/b.png").read_bytes() == b"x"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a//b", "", ".", "a\0b"])
def test_a_file_that_would_leave_its_directory_is_refused(name: str, tmp_path: Path) -> None:
    """File names come from other machines."""
    writer = ResultsWriter.create(ResultsTarget(files_dir=tmp_path / "here"), JOB)
    writer.write(task(0), files=[(name, b"x", 0o644)])
    assert writer.refused_count == 1
    assert not list(tmp_path.glob("here/**/*")) and not (tmp_path / "x").exists()


def test_a_disk_that_refuses_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    writer = ResultsWriter.create(ResultsTarget(dir=tmp_path / "out"), JOB)
    shutil.rmtree(tmp_path / "out/tasks")
    (tmp_path / "out/tasks").write_text("in the way")
    with pytest.raises(StoreError) as caught:
        writer.write(task(0))
    assert caught.value.fix and "nothing is lost" in caught.value.fix
    assert not writer.is_written(0)
    (tmp_path / "out/tasks").unlink()
    assert writer.write(task(0)), "once there is room it goes on"
    writer.close()


@pytest.mark.parametrize("member", ["joblog", "file"])
def test_only_plain_files_are_written(member: str, tmp_path: Path) -> None:
    """Whoever opens a FIFO waits for its other end, and a device may have no end."""
    fifo, loop = tmp_path / "fifo.csv", tmp_path / "loop.csv"
    os.mkfifo(fifo)
    loop.symlink_to("loop.csv")
    long = tmp_path / f"{'x' * 100_000}.csv"
    for path in (fifo, loop, long, Path("/dev/full"), Path("/dev/stdout"), Path("/proc/self/mem"), Path("/dev/fd/1")):
        with pytest.raises(UsageError) as refusal:
            check_target(ResultsTarget(**{member: path}))
        assert refusal.value.code == "results-path" and len(str(refusal.value)) < 1000
    for resume in (False, True):
        with pytest.raises((StoreError, UsageError), match="plain file"):  # put there after the check
            (ResultsWriter.reopen if resume else ResultsWriter.create)(ResultsTarget(**{member: fifo}), JOB)
    with pytest.raises(UsageError):
        read_done_keys(fifo)
    (tmp_path / "log.csv").touch()
    (tmp_path / "link.csv").symlink_to("log.csv")
    check_target(ResultsTarget(**{member: tmp_path / "link.csv"}))


def test_a_name_that_cannot_be_is_one_files_trouble(tmp_path: Path) -> None:
    """The other files of the task are written, and the other tasks."""
    writer = ResultsWriter.create(ResultsTarget(dir=tmp_path / "out"), JOB)
    names = ("a.txt", "a.txt/sub", "x" * 256, "../up", "y" * 255)
    writer.write(task(0), files=[(name, b"1", 0o644) for name in names])
    writer.write(task(1), files=[("a.txt", b"2", 0o644)])
    writer.close({})
    folder = tmp_path / "out/tasks/000/000000"
    meta = json.loads((folder / "meta.json").read_text())
    assert [file["name"] for file in meta["files"]] == ["a.txt", "y" * 255]
    assert [file["name"] for file in meta["files_refused"]] == ["a.txt/sub", "x" * 256, "../up"]
    assert sorted(path.name for path in (folder / "files").iterdir()) == ["a.txt", "y" * 255]
    assert (tmp_path / "out/tasks/000/000001/files/a.txt").read_bytes() == b"2"


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "log"])
def test_of_a_long_line_a_part_is_held(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output of gigabytes is in one line; what was done is known by its beginning."""
    monkeypatch.setattr("p2pcompute.host.plain_files.RESULT_LINE_BYTES_MAX", 1000)
    monkeypatch.setattr("p2pcompute.api.result_keys.RESULT_LINE_BYTES_MAX", 1000)
    path = tmp_path / name
    target = ResultsTarget(joblog=path) if name == "log" else ResultsTarget(file=path)
    for index in range(3):
        writer = (ResultsWriter.reopen if index else ResultsWriter.create)(target, JOB)
        assert [writer.is_written(i) for i in range(3)] == [i < index for i in range(3)]
        writer.write(task(index), stdout=b'o"\n' * 5000, stderr=b"e" * 5000)
        writer.close()
    found = read_done_keys(path)
    assert len(found.done) == 3 and found.next_number == 3


def test_targets_travel_as_json() -> None:
    target = ResultsTarget(dir=Path("/a"), joblog=Path("/b"), first=3, resume=True)
    assert ResultsTarget.from_json(target.to_json()) == target
    for bad in ({"dir": "relative"}, {"dir": 3}, {"first": -1}, {"file": "/x.txt"}, {"resume": 1}):
        with pytest.raises(UsageError):
            ResultsTarget.from_json(bad)


def test_results_of_an_unfinished_job_are_claimed(tmp_path: Path) -> None:
    """Two jobs in one directory would run tasks twice and mix their numbers."""
    target = ResultsTarget(dir=tmp_path / "out", joblog=tmp_path / "log", resume=True)
    first = ResultsWriter.create(target, JOB, home="/home/a")
    first.close()
    for make in (ResultsWriter.create, ResultsWriter.reopen):
        with pytest.raises(UsageError) as caught:
            make(target, {**JOB, "id": "bb" * 32}, home="/home/b")
        assert caught.value.code == "results-busy" and "/home/a" in caught.value.why
    assert check_claims(target.claims(), "/home/a") == {JOB["id"]}
    with pytest.raises(UsageError):
        check_claims(target.claims(), "/home/b")
    ResultsWriter.reopen(target, JOB, home="/home/a").close({})
    assert check_claims(target.claims(), "/home/b") == set()
    ResultsWriter.create(target, {**JOB, "id": "bb" * 32}, home="/home/b").close({})
    assert not [path for path in tmp_path.rglob("*") if "writer" in path.name]
