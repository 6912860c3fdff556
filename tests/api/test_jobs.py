"""Jobs: many calls or commands under one name."""

from __future__ import annotations

import concurrent.futures as cf
import time
from pathlib import Path

import pytest

import p2pcompute
from p2pcompute import BadValue, Completed, Job, JobStatus, MeshExecutor, TaskOptions, UsageError, WorkerDied
from p2pcompute.api.shell import start_commands
from tests.api.conftest import wait_until


def square(n: int) -> int:
    return n * n


def picky(n: int) -> int:
    if n % 3 == 0:
        raise ValueError(n)
    return n


def sh(executor: MeshExecutor, command: object, inputs: object = None, **given: object) -> Job[Completed]:
    """`p2pcompute.sh` on this executor."""
    options = TaskOptions().changed(**{name: given.pop(name) for name in ("timeout", "env") if name in given})
    places = {"send": (), "fetch": (), "to": ".", "name": None, **given}
    return start_commands(executor, command, inputs, options=options, **places)  # type: ignore[arg-type]


def test_values_in_order(executor: MeshExecutor) -> None:
    """Broken: a job's values are in another order than its inputs."""
    job = executor.start_map(square, range(100))
    assert list(job) == [n * n for n in range(100)]
    assert len(job) == 100
    assert job.results() == list(job)
    assert job.name == "square"
    assert (job.status.done, job.status.total) == (100, 100)


async def test_async_iteration(executor: MeshExecutor) -> None:
    """Broken: jobs cannot be used in asyncio programs."""
    assert [value async for value in executor.start_map(square, range(10))] == [n * n for n in range(10)]


def test_generator_input_and_several_iterables(executor: MeshExecutor) -> None:
    """Broken: inputs have to be lists."""
    assert list(executor.start_map(pow, (n for n in range(4)), [2, 2, 2])) == [0, 1, 4]


def test_failures(executor: MeshExecutor) -> None:
    """Broken: one failed task hides the results of the others."""
    job = executor.start_map(picky, range(6)).wait(20)
    assert [future.info.index for future in job.failures()] == [0, 3]
    assert job.results(errors="skip") == [1, 2, 4, 5]
    returned = job.results(errors="return")
    assert isinstance(returned[3], ValueError)
    with pytest.raises(BadValue, match='"raise", "skip" or "return"'):
        job.results(errors="ignore")  # type: ignore[arg-type]  # it would leave them out
    with pytest.raises(ValueError, match="0"):
        job.results()
    assert (job.status.failed, job.status.done) == (2, 4)


def test_as_completed(executor: MeshExecutor) -> None:
    """Broken: the example of the manual."""
    job = executor.start_map(square, range(20), name="sweep", options=TaskOptions(retries=1))
    assert sorted(future.result() for future in job.as_completed(timeout=20)) == [n * n for n in range(20)]
    assert job.name == "sweep"


def test_cancel(executor: MeshExecutor) -> None:
    """Broken: a job that was given up goes on."""
    job = executor.start_map(time.sleep, [0.2] * 50)
    wait_until(lambda: job.status.running > 0, "something runs")
    job.cancel()
    job.wait(20)
    status = job.status
    assert status.cancelled >= 40
    assert status.done + status.cancelled == 50
    with pytest.raises(cf.CancelledError):
        job.futures[-1].result()


def test_cancel_now(executor: MeshExecutor) -> None:
    """Broken: what runs cannot be stopped."""
    job = executor.start_map(time.sleep, [60] * 4)
    other = executor.submit(square, 3)
    wait_until(lambda: job.status.running == 2, "both workers are busy")
    job.cancel(now=True)
    assert job.wait(20).status.cancelled == 4
    assert other.result(timeout=20) == 9, "other calls go on"


def test_results_timeout(executor: MeshExecutor) -> None:
    """Broken: a bounded wait for a job lasts for ever."""
    job = executor.start_map(time.sleep, [60])
    with pytest.raises(TimeoutError):
        job.results(timeout=0.05)
    job.cancel(now=True)
    job.wait(20)


def test_a_job_that_is_over_is_forgotten(executor: MeshExecutor) -> None:
    """Broken: a program that starts many jobs grows for ever."""
    before = len(executor._desk._jobs)
    for _ in range(5):
        executor.start_map(square, range(3)).results()
    wait_until(lambda: len(executor._desk._jobs) <= before, "jobs are forgotten")


def test_bad_input_stops_the_job(executor: MeshExecutor) -> None:
    """Broken: half a job runs although its inputs could not be read."""

    def inputs() -> object:
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError):
        executor.start_map(square, inputs())  # type: ignore[arg-type]
    assert executor.submit(square, 2).result() == 4


# --- commands -----------------------------------------------------------------------------------------


def test_shell_command(executor: MeshExecutor) -> None:
    """Broken: an input that needs quoting breaks the command, or an exit code is lost."""
    first, second = sh(executor, "printf '%s|' {}; exit 3", ["it's", "a  b"])
    assert (first.stdout, first.returncode) == (b"it's|", 3)
    assert (second.stdout, second.args) == (b"a  b|", ("printf '%s|' 'a  b'; exit 3",))


def test_a_command_that_ends_badly_has_failed(executor: MeshExecutor) -> None:
    """Broken: a script looks at the job's counts, sees that all is done, and goes on with rubbish."""
    job = sh(executor, "exit {}", ["0", "3"]).wait()
    assert [completed.returncode for completed in job] == [0, 3]
    assert (job.status.done, job.status.failed) == (1, 1)
    assert [(future.result().returncode, future.info.state) for future in job.failures()] == [(3, "failed")]
    assert "exit code 3" in job._repr_mimebundle_()["text/html"]


def test_words_command(executor: MeshExecutor) -> None:
    """Broken: words are seen by a shell."""
    (only,) = sh(executor, ["echo", "$HOME", "{}"], ["*"])
    assert only.stdout == b"$HOME *\n"
    (appended,) = sh(executor, ["echo"], ["x"])
    assert appended.stdout == b"x\n"


def test_files_go_and_come(executor: MeshExecutor, tmp_path: Path) -> None:
    """Broken: commands do not find their inputs, or what they made is lost."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name} {name}\n")
    job = sh(
        executor,
        "wc -w < {} > count; cat {}",
        [f"{tmp_path}/a.txt", f"{tmp_path}/b.txt"],
        send=["{}"],
        fetch=["count"],
        to=tmp_path / "out",
    )
    job.wait(20)
    assert [completed.returncode for completed in job] == [0, 0], "an absolute path stays readable on this machine"
    assert (tmp_path / "out" / "count").read_text().strip() == "2"


def test_large_output(executor: MeshExecutor) -> None:
    """Broken: output that does not fit a message is cut."""
    (only,) = sh(executor, "head -c 300000 /dev/zero")
    assert only.stdout == bytes(300_000)


def test_missing_command(executor: MeshExecutor) -> None:
    """Broken: nobody learns why a command did not start."""
    (only,) = sh(executor, ["no-such-program-anywhere"], ["x"])
    assert only.returncode == 127
    assert b"not found" in only.stderr


def test_command_timeout(executor: MeshExecutor) -> None:
    """Broken: a command outlives its limit."""
    with pytest.raises(WorkerDied) as caught:
        list(sh(executor, "sleep 60", timeout=0.2))
    assert caught.value.cause == "timeout"


def test_missing_file(executor: MeshExecutor) -> None:
    """Broken: a typing error in a name shows up on another machine."""
    with pytest.raises(UsageError, match="cannot be sent"):
        sh(executor, "cat {}", ["/no/such/file"], send=["{}"])


def test_module_level_sh() -> None:
    """Broken: the shortest program."""
    from p2pcompute.api import shared

    assert [completed.stdout for completed in p2pcompute.sh("echo", [1, 2])] == [b"1\n", b"2\n"]
    shared.shared_executor().shutdown()


# --- how it stands --------------------------------------------------------------------------------


def test_status_says_who_did_what(executor: MeshExecutor) -> None:
    job = executor.start_map(len, ["a", "bc", ""], name="lengths").wait()
    status = job.status
    assert (status.done, status.total, status.ended, status.eta) == (3, 3, 3, None)
    assert status.id == job.id and status.rate > 0
    (share,) = status.by_node.values()
    assert (share.done, share.running, share.failed) == (3, 0, 0)
    assert str(status).startswith("lengths: 3/3 done, ")


def test_progress_is_told_until_the_end(executor: MeshExecutor, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[JobStatus] = []
    executor.start_map(time.sleep, [0.7, 0.0], name="naps").wait(progress=told.append)
    assert told[-1].done == 2 and all(status.ended < 2 for status in told[:-1])
    executor.start_map(abs, [1], name="abs").wait(progress=True)
    assert capsys.readouterr().err.splitlines()[-1].startswith("abs: 1/1 done")
    executor.start_map(abs, [1], name="abs").wait()
    assert capsys.readouterr().err == "", "nothing by itself where nobody looks"
    slow = executor.start_map(time.sleep, [30], name="slow")
    assert slow.wait(0.1, progress=lambda _status: None).status.ended == 0
    slow.cancel(now=True)


def test_a_notebook_shows_names_and_errors_as_text(executor: MeshExecutor) -> None:
    """Broken: a job's name or an exception is markup in somebody's notebook."""
    job = executor.start_map(int, ["1", "<script>"], name="<b>").wait()
    shown = job._repr_mimebundle_()
    assert "<script" not in shown["text/html"] and "&lt;b&gt;" in shown["text/html"]
    assert "1 failed" in shown["text/html"] and "Job <b>" in shown["text/plain"]


def test_a_table_for_pandas(executor: MeshExecutor) -> None:
    pandas = pytest.importorskip("pandas", reason="runs with pandas, which dev.py test installs")
    frame = executor.start_map(int, ["7", "x"]).wait().to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["state"]) == ["done", "failed"] and frame["value"][0] == 7 and "ValueError" in frame["error"][1]


def test_pictures_of_a_job(executor: MeshExecutor, tmp_path: Path) -> None:
    job = executor.start_map(abs, range(20)).wait()
    job.plot("gantt", path=tmp_path / "a.csv")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 21
