"""Yes and No: whom nobody can ask gets the command that says yes, with every flag that was typed."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path

import pytest

from p2pcompute.cli import asking
from p2pcompute.cli.main import run_command


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("P2PC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("P2PC_NO_AUTOSTART", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_that_says_yes_has_all_that_was_typed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reason or a path that were lost would be found out when it is too late."""
    typed = ["--no-input", "join", "--psk", str(home / "my key"), "--via", "nova:7878"]
    (home / "my key").write_bytes(b"k" * 32)
    (home / "my key").chmod(0o600)
    assert run_command(typed) == 6
    shown = capsys.readouterr().err
    (fix,) = [line.partition("p2pc ")[2] for line in shown.splitlines() if "--accept" in line]
    assert shlex.split(fix) == [*typed, "--accept", "sandboxed"]


def test_words_after_two_dashes_stay_the_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # not a terminal: its `y` is nobody's
    assert run_command(["completion", "--install", "--", "bash"]) == 2
    error = capsys.readouterr().err
    assert "needs a yes" in error and "p2pc completion --install -y -- bash" in error


@pytest.mark.parametrize(("answer", "is_written"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_no_is_the_answer_unless_told_otherwise(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str, is_written: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    monkeypatch.setattr(asking, "is_terminal", lambda stream: True)
    code = run_command(["completion", "--install", "fish"])
    written = list(home.rglob("p2pc.fish"))
    assert (code, bool(written)) == ((0, True) if is_written else (2, False))
    assert is_written or "nothing was written" in capsys.readouterr().err
