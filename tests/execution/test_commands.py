"""Commands: words, environment, files, limits, exit codes."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from p2pcompute.execution.spec import InputFile, JobSpec, TaskKind, TaskPayload
from p2pcompute.host.runs import FAILS_ALWAYS, Outcome, OutcomeStatus

from .conftest import Rig, is_running, wait_for

COMMAND = JobSpec(kind=TaskKind.COMMAND)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    """One for the whole module."""
    return shared_rig


async def run_words(rig: Rig, *words: str, **fields: Any) -> Outcome:
    (outcome,) = await rig.run(COMMAND, TaskPayload(argv=words, **fields))
    return outcome


async def test_words_reach_the_command_unparsed(rig: Rig) -> None:
    """GNU parallel's usual surprise: spaces and shell signs in an input must not be parsed again."""
    outcome = await run_words(rig, "printf", "%s|", "a  b", "$HOME", "", "ü;'\"")
    assert (outcome.status, outcome.exit_code) == (OutcomeStatus.OK, 0)
    assert outcome.stdout.decode() == "a  b|$HOME||ü;'\"|"


async def test_streams_exit_code_and_measurements(rig: Rig) -> None:
    outcome = await rig.shell("cat; echo problem >&2; exit 3", stdin=b"from stdin")
    assert (outcome.status, outcome.exit_code, outcome.signal) == (OutcomeStatus.FAILED, 3, None)
    assert (outcome.stdout, outcome.stderr) == (b"from stdin", b"problem\n")
    assert "exit code 3" in outcome.error
    assert outcome.runtime_s > 0 and outcome.peak_rss_bytes > 0 and outcome.started_wall > 1e9


async def test_stdin_is_empty_or_a_blob(rig: Rig) -> None:
    assert (await rig.shell("wc -c")).stdout.strip() == b"0"
    blob = await rig.blobs.put(b"z" * 200_000)
    assert (await rig.shell("wc -c", stdin_blob=blob)).stdout.strip() == b"200000"


async def test_large_output_is_a_blob_with_its_tail_inline(rig: Rig) -> None:
    outcome = await rig.shell("head -c 300000 /dev/zero; printf end")
    assert len(outcome.stdout) == 65_536 and outcome.stdout.endswith(b"end")
    assert len(await rig.content(outcome.stdout_blob)) == 300_003 and outcome.stderr_blob is None


async def test_environment_and_fresh_directory(rig: Rig) -> None:
    text = "pwd; ls -A; echo $P2PC_INDEX $PARALLEL_SEQ $P2PC_NODE $GREETING; touch left"
    first = await rig.shell(text, env={"GREETING": "hi"})
    second = await rig.shell("pwd; ls -A; test $TMPDIR = $P2PC_SCRATCH -a -d $TMPDIR")
    assert first.stdout.splitlines()[1:] == [b"0 1 nova hi"]
    assert second.status == OutcomeStatus.OK and len(second.stdout.splitlines()) == 1, "files of the task before"
    assert os.listdir(first.stdout.splitlines()[0]) == [], "a task's files were left behind"


@pytest.mark.parametrize(
    "what",
    [
        "chmod 500 .",
        "chmod 755 $TMPDIR",
        "touch ../beside",
        "mv ../tmp ../away; mkdir ../tmp",
        "rmdir $TMPDIR",
        "cd ..; rmdir work; ln -s /etc work",
    ],
)
async def test_a_directory_that_a_command_changed_is_not_given_to_the_next(rig: Rig, what: str) -> None:
    first = await rig.shell(f"pwd; {what}")
    second = await rig.shell("pwd; ls -Ld . .. $TMPDIR; ls -l .. | tail -n +2 | cut -c1-10; stat -c %a . $TMPDIR")
    place, *_names, modes, one, two = second.stdout.splitlines()
    assert first.status == second.status == OutcomeStatus.OK
    assert place != first.stdout.splitlines()[0] and modes == b"drwx------" and one == two == b"700"
    third = await rig.shell("pwd; ls -A . .. | grep -vc :")
    assert third.stdout.splitlines() == [place, b"4"], "one that is as it was is used again, empty"


CANNOT_START = [
    (("no-such-command-here",), 127, "it is in no directory of PATH"),
    (("./absent",), 127, "there is no such file in the task's directory"),
    (("./plain",), 126, "it is not executable"),
    (("./",), 126, "it is a directory"),
    (("./no-interpreter",), 126, "the interpreter named in its first line"),
    (("./no-hashbang",), 126, "no '#!' line"),
    (("echo", "x" * 200_000), 126, "too long"),
]


async def test_commands_that_cannot_start_say_why(rig: Rig) -> None:
    """With the bare code a person cannot tell a typing error from a machine without the program."""
    send = (
        InputFile("plain", await rig.blobs.put(b"#!/bin/sh\n")),
        InputFile("no-interpreter", await rig.blobs.put(b"#!/no/such\n"), 0o755),
        InputFile("no-hashbang", await rig.blobs.put(b"\x01\x02\x03"), 0o755),
    )
    outcomes = await rig.run(COMMAND, *(TaskPayload(argv=words, send=send) for words, _, _ in CANNOT_START))
    for outcome, (words, exit_code, why) in zip(outcomes, CANNOT_START, strict=True):
        assert (outcome.status, outcome.exit_code) == (OutcomeStatus.FAILED, exit_code), words
        assert why in outcome.error and "; " in outcome.error, outcome.error
        is_own = words[0].startswith("./") and words[0] != "./no-interpreter"
        assert (outcome.cause == FAILS_ALWAYS) == is_own, "tried on other nodes in vain, or not where it might work"


async def test_shell_reports_its_own_not_found(rig: Rig) -> None:
    assert (await rig.shell("no-such-command-here")).exit_code == 127


# --- signals and limits -----------------------------------------------------------------------------------


async def test_signals_are_reported(rig: Rig) -> None:
    outcome = await rig.shell("kill -SEGV $$")
    assert (outcome.status, outcome.signal, outcome.exit_code) == (OutcomeStatus.FAILED, signal.SIGSEGV, None)
    assert "SIGSEGV" in outcome.error and "limit" not in outcome.error
    limited = await rig.shell("kill -SEGV $$", mem_bytes=256 << 20)
    assert "may have met its memory limit of 256 MiB (--mem)" in limited.error
    died = await rig.shell("kill -KILL $$")
    assert (died.status, died.cause, died.signal) == (OutcomeStatus.DIED, "signal", signal.SIGKILL)


async def test_broken_pipes_end_commands_quietly(rig: Rig) -> None:
    """Python ignores SIGPIPE; a command that inherited that would print errors or run for ever."""
    outcome = await rig.shell("yes | head -n 1")
    assert (outcome.status, outcome.stdout, outcome.stderr) == (OutcomeStatus.OK, b"y\n", b"")


async def test_wall_limit_kills_the_whole_group(rig: Rig) -> None:
    outcome = await rig.shell("sleep 300 & echo $!; wait", timeout_s=0.3)
    assert (outcome.status, outcome.cause) == (OutcomeStatus.TIMEOUT, "wall") and "0.3 s" in outcome.error
    await wait_for(lambda: not is_running(int(outcome.stdout)), "nothing is left")
    assert outcome.runtime_s < 2.0, "SIGTERM was enough"


async def test_wall_limit_kills_what_ignores_sigterm(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.execution.processes.KILL_GRACE_S", 0.2)
    await rig.runner.close()  # a new worker process is told the new grace
    await rig.runner.start()
    outcome = await rig.shell("trap '' TERM; while :; do sleep 0.1; done", timeout_s=0.2)
    assert (outcome.status, outcome.signal) == (OutcomeStatus.TIMEOUT, signal.SIGKILL)


async def test_cpu_limit_is_a_timeout_with_its_cause(rig: Rig) -> None:
    outcome = await rig.shell("while :; do :; done", cpu_s=1.0)
    assert (outcome.status, outcome.cause) == (OutcomeStatus.TIMEOUT, "cpu") and outcome.cpu_s > 0.5


async def test_memory_limit(rig: Rig) -> None:
    outcome = await rig.shell("ulimit -v", mem_bytes=256 << 20)
    assert outcome.stdout.strip() == str(256 << 10).encode()


async def test_file_size_limit(rig: Rig) -> None:
    outcome = await rig.shell("exec head -c 100000 /dev/zero", output_bytes_max=10_000)
    assert outcome.status == OutcomeStatus.FAILED and outcome.signal == signal.SIGXFSZ
    assert "10000 bytes" in outcome.error


async def test_processes_left_behind_are_killed(rig: Rig) -> None:
    outcome = await rig.shell("sleep 300 & echo $!; setsid sleep 300 & echo $!")
    assert outcome.status == OutcomeStatus.OK
    for pid in map(int, outcome.stdout.split()):
        await wait_for(lambda pid=pid: not is_running(pid), "background process gone")  # type: ignore[misc]


async def test_only_standard_descriptors_are_inherited(rig: Rig) -> None:
    """An inherited socket or life line would let a command speak to the node or survive it."""
    outcome = await run_words(rig, "ls", "/proc/self/fd")
    assert outcome.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 is ls reading the directory


# --- files ------------------------------------------------------------------------------------------------


async def test_sent_files_have_their_mode_and_are_not_the_blob(rig: Rig) -> None:
    """A task that writes to its input would corrupt the store for everybody."""
    blob = await rig.blobs.put(b"#!/bin/sh\necho ran\n")
    text = "./bin/tool; echo broken >> bin/tool; chmod 777 bin/tool; stat -c %a plain"
    send = (InputFile("bin/tool", blob, 0o755), InputFile("plain", blob, 0o640))
    outcome = await rig.shell(text, send=send)
    assert outcome.stdout == b"ran\n640\n"
    assert await rig.blobs.read(blob) == b"#!/bin/sh\necho ran\n"


async def test_shared_files_are_one_copy_and_never_the_blob(rig: Rig) -> None:
    blob = await rig.blobs.put(b"model")
    spec = JobSpec(kind=TaskKind.SHELL, share=(InputFile("model.bin", blob),))
    look = TaskPayload(argv=("cat model.bin; stat -c ' %i %h' model.bin",))
    harm = TaskPayload(argv=("chmod u+w model.bin; echo x >> model.bin",))
    runs = rig.batch(spec, [look, look, harm, look])
    one, two, bad, after = await rig.finish(runs, rig.begin(runs))
    assert one.stdout == two.stdout and one.stdout.startswith(b"model ")
    assert bad.status == OutcomeStatus.FAILED and "'model.bin'" in bad.error and "--send" in bad.error
    assert after.stdout.startswith(b"model "), "the next task got the changed file"
    assert await rig.blobs.read(blob) == b"model"


async def test_inputs_that_cannot_coexist_are_refused(rig: Rig) -> None:
    blob = await rig.blobs.put(b"x")
    outcome = await rig.shell("true", send=(InputFile("a", blob), InputFile("a/b", blob)))
    assert outcome.status == OutcomeStatus.REFUSED and "different names" in outcome.error


async def test_fetch_by_name_and_pattern(rig: Rig) -> None:
    text = """
        mkdir -p out/deep .hidden; echo 1 > out/a.txt; echo 2 > out/deep/b.txt
        echo 3 > run.sh; chmod 750 run.sh; touch out/.c.txt .hidden/d.txt
    """
    outcome = await rig.shell(text, fetch=("run.sh", "**/*.txt"))
    files = {file.name: file for file in outcome.files}
    assert sorted(files) == ["out/a.txt", "out/deep/b.txt", "run.sh"] and files["run.sh"].mode == 0o750
    assert await rig.content((files["out/deep/b.txt"].digest, files["out/deep/b.txt"].size)) == b"2\n"
    (hidden,) = (await rig.shell("echo x > .secret; echo y > open", fetch=(".s*",))).files
    assert hidden.name == ".secret"


async def test_a_pattern_is_what_a_task_has_made_of_its_directory(rig: Rig) -> None:
    """Inputs come back when they were changed, be it at once and to the same size, or when they are named."""
    names = ("kept", "sub/kept", "sub/changed", "gone", "written")
    send = tuple([InputFile(name, await rig.blobs.put(f"{name}\n".encode())) for name in names])
    share = (InputFile("shared", await rig.blobs.put(b"shared\n")),)
    text = "printf WRITTEN > written; echo more >> sub/changed; rm gone; mkdir new; echo new > new/file; touch empty"
    outcome = await rig.shell(text, send=send, fetch=("**",), share=share)
    assert outcome.status is OutcomeStatus.OK, outcome.error
    assert sorted(file.name for file in outcome.files) == ["empty", "new/file", "sub/changed", "written"]
    named = await rig.shell(text, send=send, fetch=("kept", "new/*"), share=share)
    assert sorted(file.name for file in named.files) == ["kept", "new/file"]
    nothing = await rig.shell("true", send=send, fetch=("**",))
    assert nothing.status is OutcomeStatus.FAILED and "no output file matches '**'" in nothing.error


CANNOT_FETCH = [
    ("true", "result.txt", "no output file matches 'result.txt'"),
    ("true", "*.png", "no output file matches '*.png'"),
    ("ln -s /etc/passwd out", "out", "a symbolic link"),
    ("ln -s /etc etc", "etc/passwd", "no output file matches"),
    ("ln -s /etc etc", "**/passwd", "no output file matches"),
    ("mkdir out", "out", "--fetch 'out/**'"),
    ("mkfifo out", "out", "no regular file"),
    ("true", "../blobs", "not below the task's directory"),
    ("true", "/etc/passwd", "not below the task's directory"),
]


async def test_outputs_that_cannot_be_fetched_fail_the_task(rig: Rig) -> None:
    """A result without its files must not count as done, and nothing outside the directory may leave the machine."""
    payloads = [TaskPayload(argv=(text,), fetch=(pattern,)) for text, pattern, _ in CANNOT_FETCH]
    outcomes = await rig.run(JobSpec(kind=TaskKind.SHELL), *payloads)
    for outcome, (_, _, why) in zip(outcomes, CANNOT_FETCH, strict=True):
        assert outcome.status == OutcomeStatus.FAILED and outcome.files == () and why in outcome.error, outcome.error


async def test_a_hard_link_does_not_carry_its_target_away(rig: Rig, tmp_path: Any) -> None:
    """Moving such a file into the store would let the other name change a blob later."""
    (tmp_path / "precious").write_bytes(b"mine")
    outcome = await rig.shell(f"ln {tmp_path}/precious out", fetch=("out",))
    (file,) = outcome.files
    (tmp_path / "precious").write_bytes(b"gone")
    assert await rig.content((file.digest, file.size)) == b"mine"


async def test_a_file_name_that_is_not_text_is_a_clear_failure(rig: Rig) -> None:
    outcome = await rig.shell(r"touch $(printf 'a\377b')", fetch=("a*",))
    assert outcome.status == OutcomeStatus.FAILED and "not UTF-8" in outcome.error


async def test_impossible_words_and_variables_are_refused(rig: Rig) -> None:
    for payload in (TaskPayload(argv=("echo", "a\0b")), TaskPayload(argv=("true",), env={"A=B": "c"})):
        (outcome,) = await rig.run(COMMAND, payload)
        assert outcome.status == OutcomeStatus.REFUSED and outcome.error


async def test_failed_commands_bring_nothing_back(rig: Rig) -> None:
    outcome = await rig.shell("echo half > out; exit 1", fetch=("out",))
    assert outcome.status == OutcomeStatus.FAILED and outcome.files == () and outcome.exit_code == 1


async def test_awkward_trees_are_removed(rig: Rig) -> None:
    """Read-only and very deep directories would fill the disk, since no plain removal gets them."""
    many = "d/" * 1500
    deep = f"mkdir -p {many}; cd -P {many}; mkdir -p {many}"
    outcome = await rig.shell(f"mkdir -p ro/in; touch ro/in/f; chmod 500 ro/in ro; ({deep}); ln -s / root; pwd")
    directory = outcome.stdout.decode().strip()
    assert outcome.status == OutcomeStatus.OK
    assert not os.path.lexists(directory) or not os.listdir(directory)
    assert os.path.exists("/etc")
