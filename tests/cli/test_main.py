"""The root command: what it imports, how it names errors, which exit code it ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from p2pcompute.cli.command import Command, parse_reference
from p2pcompute.cli.connection import Connection
from p2pcompute.cli.follow import job_exit_code
from p2pcompute.cli.main import COMMANDS, LazyGroup, exit_code_of, format_error, p2pc, run_command
from p2pcompute.errors import (
    IdentityError,
    NodeUnavailable,
    NoEligibleNode,
    P2pcError,
    StoreError,
    TrustError,
    UsageError,
    VersionMismatch,
)

HEAVY = (
    "rich",
    "msgspec",
    "httpx",
    "asyncio",
    "cbor2",
    "nacl",
    "cryptography",
    "starlette",
    "uvicorn",
    "cloudpickle",
    "psutil",
    "multiprocessing",
    "p2pcompute.node",
    "p2pcompute.daemon",
    "p2pcompute.execution",
    "p2pcompute.scheduler",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("P2PC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("P2PC_NO_AUTOSTART", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [["status"], ["--help"], ["jobs"], ["completion", "bash"], ["run", "--help"], ["--version"]]
)
def test_quick_commands_import_nothing_heavy(arguments: list[str], home: Path) -> None:
    """Each of these modules would cost the start of every command."""
    program = (
        "import sys\nfrom p2pcompute.cli.main import run_command\n"
        f"run_command({arguments!r})\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stderr.split()
    assert [name for name in loaded if name.startswith(tuple(f"{heavy}." for heavy in HEAVY)) or name in HEAVY] == []


def in_shell(line: str) -> tuple[int, str]:
    """Run a line in which `p2pc` is ours; returns exit code and stderr."""
    shell = f'p2pc() {{ "{sys.executable}" -m p2pcompute "$@"; }}; {line}'
    done = subprocess.run(
        ["/bin/sh", "-c", shell], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("p2pc run echo <&-", "no inputs"),
        ("p2pc run -a - --dry-run echo <&-", "standard input is closed"),
        ("p2pc run --pipe cat <&-", "no inputs"),
        ("p2pc --version >&-", "standard output is closed"),
        ("p2pc --version >&- <&- 2>&-", ""),
        ("p2pc find \"$(printf '\\377')\"", "is not UTF-8"),
        ("p2pc when \"$(printf '\\377')\"", "is not UTF-8"),
        ("p2pc config set node.name \"$(printf '\\377')\"", "is not UTF-8"),
        ("p2pc run --kind wasm /proc/self/mem ::: a", "cannot be read"),
        ("p2pc run --from-json /dev/zero --dry-run echo", "longer than 1 MiB"),
        ("p2pc run --block nan true ::: a", "is not a size"),
        ("p2pc run --timeout '' true ::: a", "--timeout is empty"),
        ("p2pc run --mem '' true ::: a", "--mem is empty"),
        ("p2pc run --disk ' ' true ::: a", "--disk is empty"),
    ],
)
def test_odd_surroundings_are_said_and_are_no_bug(line: str, said: str, home: Path) -> None:
    code, err = in_shell(line)
    assert code == 2 and said in err and "Traceback" not in err


def test_a_word_that_is_not_utf_8_is_named_before_a_node_is_asked() -> None:
    """As the shell hands over --name, --on, --results and others; the node would call it malformed JSON."""
    body = {"name": "fine", "terms": {"on": ["fine", "a\udcffb \\ c"]}, "more": "fine"}
    with pytest.raises(UsageError, match=r"a\\udcffb") as caught:
        Connection(Path("/nowhere")).request("POST", "/v1/jobs", body)
    assert caught.value.code == "encoding" and "fine" not in caught.value.what


def test_ctrl_c_while_modules_are_imported_ends_a_command_like_any_other() -> None:
    program = (
        "import sys\nfrom p2pcompute.cli import entry\n"
        "class Interrupts:\n    def find_spec(self, name, *rest):\n"
        "        if name == 'p2pcompute.cli.main': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\nassert 'click' not in sys.modules\nentry.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 130 and not done.stderr
    program = "import sys; before = {*sys.modules}; import p2pcompute.cli.entry; print(*{*sys.modules} - before)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-S", "-c", program], check=True, capture_output=True, text=True, cwd=root)
    ours = {"p2pcompute", "p2pcompute.cli", "p2pcompute.cli.entry"}
    assert {*done.stdout.split()} == ours, "what comes before is over in a moment"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_every_command_of_the_table_is_there_with_its_help() -> None:
    context = click.Context(p2pc)
    assert isinstance(p2pc, LazyGroup)
    for section in COMMANDS.values():
        for name in section:
            command = p2pc.get_command(context, name)
            assert command is not None and command.help, name
            text = command.get_help(click.Context(command, info_name=name, parent=context))
            assert "Usage:" in text
            leaves = command.commands.values() if isinstance(command, click.Group) else [command]
            assert all(leaf.examples for leaf in leaves if isinstance(leaf, Command)), f"{name}: begin with examples"
            if isinstance(command, click.Group):
                assert "..." not in text.partition("Commands:")[2], f"{name}: what its commands do is cut off"
            if "/TASKS" in text:
                assert "Tasks count from 0" in " ".join(text.split()), "{#} and the joblog count from 1"


def test_mistyped_commands_and_flags_name_the_near_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "rum")
    assert (code, out) == (2, "") and 'did you mean "run"?' in err
    code, out, err = run(capsys, "run", "--retires", "3", "echo")
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "error[usage]: there is no flag --retires"
    assert 'did you mean "--retries"?' in err and "more: p2pc run --help" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stop"], "p2pc node stop"),
        (["ps"], "p2pc jobs"),
        (["submit", "x"], "p2pc run"),
        (["node", "status"], "p2pc status"),
        (["node", "pause"], "p2pc pause"),
        (["node", "submit"], "p2pc run"),
    ],
)
def test_commands_of_other_programs_are_put_right(
    words: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it broke: `p2pc stop` would be answered with `show`."""
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "") and f"fix:  {said}" in err


@pytest.mark.parametrize("flags", [["--network", "full"], ["--deps", "x.py"]])
def test_flags_that_do_nothing_for_a_module_are_refused(
    flags: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _out, err = run(capsys, "run", *flags, "--kind", "wasm", "x.wasm", ":::", "1")
    assert code == 2 and f"{flags[0]}" in err and "not for a WASM module" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--json", "--nope", "x"],
        ["run", "--nope", "--json", "x"],
        ["run", "-j", "2", "--json", "nodir/x"],
        ["jobs", "--json", "--state", "odd"],
        ["show", "a/b", "--json"],
        ["jobs", "--json"],
    ],
)
def test_with_json_an_error_is_one_document_on_stdout(
    arguments: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    document = json.loads(out)
    assert document["schema"] == "p2pc.error/1" and set(document) == {"schema", "code", "what", "why", "fix"}
    assert code in (2, 5) and err == ""


def test_json_after_the_target_belongs_to_the_command(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "run", "--dry-run", "tool", "--json", "-x", ":::", "a")
    assert (code, out) == (0, "tool --json -x a\n")
    code, out, err = run(capsys, "run", "--nope", "tool", "--json")
    assert code == 2 and out == "" and "--nope" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (UsageError("x", code="local-files"), 2),
        (NoEligibleNode("x"), 4),
        (NodeUnavailable("x"), 5),
        (VersionMismatch("x"), 5),
        (IdentityError("x"), 5),
        (StoreError("x"), 5),
        (TrustError("x"), 6),
        (P2pcError("x", code="not-finished"), 7),
        (P2pcError("x", code="no-node"), 5),
        (P2pcError("x", code="bug"), 70),
        (P2pcError("x", code="something new"), 2),
    ],
)
def test_exit_codes_of_errors(error: P2pcError, code: int) -> None:
    assert exit_code_of(error) == code


def test_commands_that_look_say_that_no_node_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("jobs", "show", "logs", "result", "wait", "attach", "retry"):
        code, out, err = run(capsys, name)
        assert code == 5 and out == "" and err.startswith("error[no-node]: no node is running here"), name
    assert run(capsys, "group", "create", "lab")[0] == run(capsys, "group", "use", "lab")[0] == 0
    assert "no node is running here for the group lab" in run(capsys, "jobs")[2], (
        "which one is meant is easily forgotten"
    )


def test_a_name_that_is_no_text_is_said_to_be_none(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "run", "--dry-run", "--fetch", "\udcff.png", "true", ":::", "1")
    assert (code, out) == (2, "") and "error[encoding]: " in err and "is not UTF-8" in err


def test_where_nothing_was_ever_submitted_there_are_no_jobs(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("P2PC_NO_AUTOSTART")
    assert run(capsys, "jobs", "--all") == (0, "no jobs\n", "")
    assert json.loads(run(capsys, "jobs", "--json")[1])["items"] == []
    for name in ("show", "logs", "result", "explain"):
        code, out, err = run(capsys, name)
        assert (code, out) == (2, "") and err.startswith("error[no-job]: there is no job here"), name


def test_our_own_errors_show_no_traceback_unless_asked(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Traceback" not in run(capsys, "jobs")[2]
    assert "Traceback" in run(capsys, "-v", "jobs")[2]

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("p2pcompute.cli.job_commands.open_kept", broken)
    code, _, err = run(capsys, "jobs")
    assert code == 70 and "error[bug]" in err and "ZeroDivisionError: boom" in err and "Traceback" not in err


def test_ctrl_c_and_a_closed_pipe_end_quietly(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, code in ((KeyboardInterrupt(), 130), (BrokenPipeError(), 141)):

        def stop(error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("p2pcompute.cli.job_commands.open_kept", stop)
        got, out, err = run(capsys, "jobs")
        assert (got, out, err.strip()) == (code, "", "")


def test_a_terminal_without_utf8_gets_ascii(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "p2pcompute", "run", "--help"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert b"Usage: p2pc run" in done.stdout and done.stdout.isascii()


def test_references() -> None:
    whole = parse_reference("j7k3")
    assert (whole.job, whole.ranges, whole.task) == ("j7k3", None, None) and 5 in whole
    assert parse_reference("last/17").task == 17
    some = parse_reference("j7k3/3-5,12")
    assert [index for index in range(20) if index in some] == [3, 4, 5, 12]
    assert some.indices(5) == [3, 4]
    for bad in ("", "/1", "a/", "a/b", "a/5-3", "a/-1", "a/1,", "../x", "a/1-2-3", "a/²"):
        with pytest.raises(UsageError):
            parse_reference(bad)


def test_completion_scripts_are_those_of_click(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signs = {"bash": "_P2PC_COMPLETE=bash_complete", "zsh": "#compdef p2pc", "fish": "complete --no-files"}
    for shell, sign in signs.items():
        code, out, _ = run(capsys, "completion", shell)
        assert code == 0 and sign in out
    assert run(capsys, "completion", "tcsh")[0] == 2


def test_completion_without_a_node_is_silent(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "p2pcompute"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "_P2PC_COMPLETE": "bash_complete", "COMP_WORDS": "p2pc show ", "COMP_CWORD": "2"},
    )
    assert "Traceback" not in done.stderr


def test_flags_that_are_not_there_are_answered_with_sense(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong suggestion costs more than none; what GNU parallel has is named."""
    for flag, expected in (
        ("--bar", "progress is shown by itself"),
        ("--dryrun", '"--dry-run"'),
        ("-N", '"-n"'),
        ("-S", "p2pc join"),
        ("--pipepart", "not there yet"),
        ("--resune", '"--resume"'),
    ):
        code, _, err = run(capsys, "run", flag, "echo", ":::", "a")
        assert code == 2 and f"there is no flag {flag}" in err and expected in err, err
    for flag in ("--foo", "--zap", "--cpus"):
        code, _, err = run(capsys, "run", flag, "echo", ":::", "a")
        assert code == 2 and "did you mean" not in err, err


@pytest.mark.parametrize(
    "words", [["run", "--cpus", "nan", "true"], ["run", "--gpus", "NaN", "true"], ["status", "--interval", "nan"]]
)
def test_not_a_number_is_in_no_range(words: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would travel as JSON that nobody can read."""
    code, _, err = run(capsys, *words)
    assert code == 2 and f"invalid value for '{words[1]}': {words[2]} is not a number" in err


def test_flags_after_the_target_are_put_right(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "sim.py").write_text("def f(x):\n    return x\n")
    code, _, err = run(capsys, "run", "sim.py::f", "--range", "1..500", "--tag")
    assert code == 2 and "flags go before the command" in err
    assert "p2pc run --range 1..500 --tag sim.py::f" in err
    examples = [line.strip() for line in run(capsys, "--help")[1].splitlines() if line.startswith("  p2pc run")]
    assert "p2pc run --range 1..500 sim.py::simulate" in examples
    code, _, err = run(capsys, "run", "--dry-run", "echo {= s/x/y/ =}", ":::", "a")
    assert code == 2 and "Perl expressions are not supported" in err


def test_join_looks_at_the_invitation_before_it_asks(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "join", "garbage")
    assert code == 2 and "neither a code nor a token" in err and "consent" not in err
    code, _, err = run(capsys, "join", "7-crossover-clockwork-tobaco")
    assert code == 2 and 'did you mean "tobacco"?' in err and "consent" not in err
    code, _, err = run(capsys, "join", "7-crossover-clockwork-tobacco", "--via", "nowhere")
    assert code == 2 and "HOST:PORT" in err and "consent" not in err


@pytest.mark.parametrize(
    ("job", "code"),
    [
        ({"exit_code": 0, "halted": "now,success=1", "failed": 2}, 0),
        ({"exit_code": 3, "halted": "now,fail=1"}, 3),
        ({"exit_code": 1, "failed": 2}, 1),
        ({"exit_code": 0, "failed": 0}, 0),
    ],
)
def test_a_success_rule_that_is_met_is_a_success(job: dict[str, Any], code: int) -> None:
    """As in GNU parallel: the search has found what it looked for."""
    assert job_exit_code(job) == code


def test_errors_cannot_command_the_terminal() -> None:
    error = P2pcError("a\x1b]0;title\x07b", "c\x1b[2Jd", "e\rf", code="x\x1b[1m")
    text = format_error(error)
    assert "\x1b" not in text and "\x07" not in text and "\r" not in text and "a ]0;title b" in text


def test_errors_do_not_repeat_all_that_they_were_given() -> None:
    text = format_error(P2pcError("x" * 20_000 + " is wrong", "so is " + "a b " * 20_000, "keep this"))
    assert f"{'x' * 60}… (20,000 characters) is wrong" in text and "keep this" in text and len(text) < 500


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-j", "99999999999"), "is too large"),
        (("--batch", "99999999999"), "is too large"),
        (("-n", "9" * 30), "not in the range"),
        (("--timeout", "99999999999h"), "is too long"),
        (("--mem", "9999999T"), "is too large"),
        (("--mem", "4"), "say the unit"),
        (("--range", "1.." + "9" * 30), "its numbers are too long"),
    ],
)
def test_a_number_that_is_too_large_or_small_is_called_so(
    flags: tuple[str, ...], words: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else people look for the mistake in how they wrote it, or read that p2pc has a bug."""
    code, _out, err = run(capsys, "run", "--dry-run", *flags, "echo", *(() if "--range" in flags else (":::", "1")))
    assert code == 2 and words in err, err


def test_a_command_is_there_and_strange_names_in_braces_are_said(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty word is tried three times, a mistyped column runs as it is."""
    for word in ("", " "):
        code, out, err = run(capsys, "run", word, ":::", "1")
        assert (code, out) == (2, "") and "there is no command" in err
    code, out, err = run(capsys, "run", "--dry-run", "echo", "{z}", ":::", "1")
    assert (code, out) == (0, "echo '{z}' 1\n") and "note: {z} is no replacement string" in err


def test_commands_to_type_name_the_group_that_was_named(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`p2pc -g lab status` says "p2pc node start": that starts the node of another group."""
    monkeypatch.setenv("P2PC_GROUP", "home")  # -g writes there: taken back after the test
    assert run(capsys, "group", "create", "lab")[0] == 0
    code, out, err = run(capsys, "-g", "lab", "status")
    assert code == 5 and "fix:  start one: p2pc -g lab node start" in err
    code, out, err = run(capsys, "-g", "lab", "status", "--json")
    assert json.loads(out)["fix"] == "start one: p2pc -g lab node start"
    monkeypatch.setenv("P2PC_GROUP", "home")
    code, out, err = run(capsys, "status")
    assert code == 5 and "fix:  start one: p2pc node start" in err


def test_flags_of_all_commands_may_stand_behind_the_command(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it broke: "there is no flag -g", although the page that the user has just read lists it."""
    monkeypatch.setenv("P2PC_GROUP", "home")  # -g writes there: taken back after the test
    monkeypatch.delenv("P2PC_CONFIG", raising=False)
    assert run(capsys, "group", "create", "lab")[0] == 0
    code, _, err = run(capsys, "status", "-g", "lab", "--color", "never", "--no-input")
    assert code == 5 and "p2pc -g lab node start" in err
    monkeypatch.setenv("P2PC_GROUP", "home")
    assert "\x1b[" in run(capsys, "status", "--color", "always")[2]
    code, out, _ = run(capsys, "run", "--dry-run", "echo", "-g", "lab", ":::", "1")
    assert (code, out) == (0, "echo -g lab 1\n"), "behind the target it belongs to the command"
    for words in (["--config", "nowhere.toml", "jobs"], ["jobs", "--config", "nowhere.toml"]):
        code, _, err = run(capsys, *words)
        assert code == 2 and "there is no settings file nowhere.toml" in err


def test_commands_that_make_groups_are_not_told_the_group(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`p2pc -g lab group create lab` would be refused: there is no group lab."""
    monkeypatch.setenv("P2PC_GROUP", "home")
    assert "fix:  p2pc group create nope" in run(capsys, "-g", "nope", "status")[2]


@pytest.mark.parametrize("name", ["group", "trust", "config", "service", "sim"])
def test_a_group_of_commands_alone_shows_its_help(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, name)
    assert (code, out) == (2, "") and err.startswith(f"Usage: p2pc {name}") and "error" not in err


def test_what_is_missing_is_named_with_an_example(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "find")
    assert code == 2 and "EXPR is missing" in err and "fix:  for example: p2pc find has=ffmpeg" in err
    assert "TARGET is missing" in run(capsys, "run")[2]


def test_far_fetched_commands_are_not_suggested(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`p2pc help` was answered with "when", `p2pc hold` with "show"."""
    for word, said in (
        ("help", "p2pc COMMAND --help"),
        ("hold", "p2pc pause"),
        ("history", "p2pc jobs"),
        ("results", "p2pc result"),
        ("statuss", 'did you mean "status"?'),
    ):
        assert said in run(capsys, word)[2]
    for word in ("upgrade", "logout", "update"):
        assert "did you mean" not in run(capsys, word)[2]


def test_a_group_that_was_only_made_is_left_without_a_node(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it broke: "no node is running here", and a node would be started to take an empty folder away."""
    monkeypatch.setenv("P2PC_GROUP", "home")  # -g writes there: taken back after the test
    assert run(capsys, "group", "create", "lab")[0] == 0
    assert run(capsys, "-g", "lab", "config", "set", "node.weight", "3")[0] == 0
    code, out, err = run(capsys, "-g", "lab", "leave", "-y")
    assert (code, out, err) == (0, "left lab; nothing of it is on this computer any more\n", "")
    monkeypatch.setenv("P2PC_GROUP", "home")
    items = json.loads(run(capsys, "group", "list", "--json")[1])["items"]
    assert [item["name"] for item in items] == ["home"]
    assert run(capsys, "leave", "-y")[0] == 5
