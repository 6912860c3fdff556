"""`p2pc doctor`: names what is missing and the command that gets it."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from p2pcompute.cli import doctor
from p2pcompute.cli.main import run_command
from p2pcompute.execution import installing
from p2pcompute.execution.installing import install_command
from tests.e2e.test_hostile import why_no_sandbox


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("P2PC_HOME", str(tmp_path))
    monkeypatch.delenv("P2PC_NODE__ACCEPT", raising=False)
    return tmp_path


def test_missing_bubblewrap(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A finding where sandboxes are wanted; none where the machine takes no work of others anyway."""

    def find(program: str, **_: object) -> str | None:
        return "/usr/bin/apt-get" if program == "apt-get" else None

    monkeypatch.setattr("shutil.which", find)
    assert run_command(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "bubblewrap is not installed" in shown and "apt-get install bubblewrap" in shown
    assert ("only when it is a WASM module" if find_spec("wasmtime") else "is refused") in shown
    monkeypatch.setattr(doctor, "find_uv", lambda: None)
    run_command(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    at = next(index for index, line in enumerate(lines) if line.split()[1] == "uv")
    assert lines[at].startswith("--") and f"{sys.executable} -m pip install 'uv>=0.9'" in lines[at + 1]
    monkeypatch.setenv("P2PC_NODE__ACCEPT", "none")
    assert run_command(["doctor"]) == 0


def test_all_is_well(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if reason := why_no_sandbox():
        pytest.skip(reason)
    assert run_command(["doctor", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert all(check["is_good"] is not False for check in checks)
    assert {check["name"] for check in checks} >= {
        "work of others",
        "bubblewrap",
        "sandbox",
        "Landlock",
        "wasmtime",
        "uv",
    }
    assert not list(home.iterdir()), "it changes nothing"


@pytest.mark.parametrize(
    ("prefix", "has_pip", "command"),
    [
        ("/home/x/.venv", True, "{python} -m pip install 'wasmtime>=50'"),
        ("/home/x/.venv", False, "uv pip install --python {python} 'wasmtime>=50'"),
        ("/home/x/.local/share/pipx/venvs/p2pcompute", True, "pipx inject p2pcompute 'wasmtime>=50'"),
        ("/home/x/.local/share/uv/tools/p2pcompute", False, "uv pip install --python {python} 'wasmtime>=50'"),
    ],
)
def test_a_package_is_installed_where_this_program_runs(
    prefix: str, has_pip: bool, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or `pip` puts it into another environment, and doctor says the same again."""
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(installing, "find_spec", lambda _name: object() if has_pip else None)
    assert install_command("wasmtime>=50") == command.format(python=sys.executable)
