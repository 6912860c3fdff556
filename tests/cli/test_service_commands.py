"""`p2pc service`: the unit is one that systemd takes, and what it starts is a node; nothing is left behind.

There is no systemd to talk to in most test environments: `systemctl` below starts and stops what the unit names.
"""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from p2pcompute.cli.main import run_command
from p2pcompute.cli.service_commands import UNIT, ServicePlan, plan_for
from p2pcompute.errors import UsageError

SYSTEMCTL = """#!{python}
import json, os, pathlib, re, signal, subprocess, sys, time
words = [word for word in sys.argv[1:] if not word.startswith("--")]
folder = pathlib.Path(os.environ["XDG_CONFIG_HOME"]) / "systemd" / "user"
kept = pathlib.Path(__file__).with_name("pid")
with open(pathlib.Path(__file__).with_name("calls"), "a") as calls:
    calls.write(" ".join(words) + "\\n")
def unquoted(text):
    found = re.findall(r'"((?:[^"\\\\]|\\\\.)*)"', text)
    return [re.sub(r"\\\\(.)", r"\\1", word).replace("%%", "%") for word in found]
def lives():
    try:
        os.kill(int(kept.read_text()), 0)
        return True
    except (OSError, ValueError):
        return False
if os.environ.get("BROKEN") and words[0] == "enable":
    sys.exit("Failed to enable unit: the disk is full")
if words[0] == "enable":
    unit = (folder / words[1]).read_text()
    command = [word.replace("$$", "$") for word in unquoted(re.search("^ExecStart=(.*)$", unit, re.M)[1])]
    env = dict(unquoted(line)[0].split("=", 1) for line in re.findall("^Environment=(.*)$", unit, re.M))
    log = open(pathlib.Path(__file__).with_name("log"), "wb")
    node = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    kept.write_text(str(node.pid))
elif words[0] == "disable" and lives():
    os.kill(int(kept.read_text()), signal.SIGTERM)
    while lives():
        time.sleep(0.01)
elif words[0] == "is-active":
    sys.exit(0 if lives() else 3)
"""


SCHTASKS = """#!{python}
import json, pathlib, subprocess, sys
folder, words = pathlib.Path(__file__).parent, sys.argv[1:]
task = folder / (words[words.index("/TN") + 1] + ".task")
if words[0] == "/Create":
    assert words[words.index("/SC") + 1] == "ONLOGON" and words[-1] == "/F"
    task.write_text(words[words.index("/TR") + 1])
elif words[0] == "/Run":
    begins = task.read_text().split()
    assert begins[:6] == ["wsl.exe", "-d", "Debian", "-u", "ada", "--exec"]
    log = open(folder / "log", "wb")
    env = {"LANG": "C.UTF-8"}  # nothing of the terminal's
    subprocess.Popen(begins[6:], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
elif words[0] == "/Delete":
    task.unlink()
"""


def plan(system: str = "linux", *, is_system: bool = False, **environ: str) -> ServicePlan:
    return plan_for(
        system, is_system=is_system, environ=environ, python=sys.executable, user_id=1000, home=Path("/home/ada")
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="runs where systemd is installed")
@pytest.mark.parametrize("is_system", [False, True])
def test_systemd_takes_the_unit(tmp_path: Path, *, is_system: bool) -> None:
    made = plan(is_system=is_system, PATH="/usr/bin:/home/a b/bin", P2PC_HOME='/home/100% "sure"')
    file = tmp_path / UNIT
    file.write_text(made.files[0][1])
    verify = ["systemd-analyze", "verify", "--man=no", *([] if is_system else ["--user"]), str(file)]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(verify, capture_output=True, text=True, check=False, env=environ)
    complaints = [line for line in done.stderr.splitlines() if UNIT in line]
    assert not complaints, complaints


def test_the_unit_says_where_things_are() -> None:
    unit = plan(P2PC_HOME="/srv/my $HOME/50%", PATH="/usr/bin", TERM="xterm").files[0][1]
    assert 'Environment="P2PC_HOME=/srv/my $HOME/50%%"' in unit and "TERM" not in unit
    assert plan(XDG_CONFIG_HOME="/cfg").files[0][0] == Path("/cfg/systemd/user/p2pc.service")
    assert 'Environment="P2PC_NODE__NAME=nova"' in plan(P2PC_NODE__NAME="nova").files[0][1]
    of_all = plan(is_system=True, P2PC_HOME="/home/ada/x").files[0][1]
    assert "/home/ada/x" not in of_all, "the machine's node does not live in somebody's home"
    assert "User=p2pc" in of_all and "P2PC_HOME=/var/lib/p2pc" in of_all


def test_control_characters_write_no_further_lines() -> None:
    with pytest.raises(UsageError, match="control characters"):
        plan(P2PC_HOME="/srv/x\nExecStartPre=/bin/false")


def test_macos_gets_an_agent() -> None:
    (path, text), *_ = plan("darwin", P2PC_HOME="/Users/ada/p2pc").files
    settings = plistlib.loads(text.encode())
    assert path.name == settings["Label"] + ".plist"
    assert settings["ProgramArguments"] == [sys.executable, "-P", "-m", "p2pcompute", "node"]
    assert settings["EnvironmentVariables"] == {"P2PC_HOME": "/Users/ada/p2pc"}
    with pytest.raises(UsageError, match="all users"):
        plan("darwin", is_system=True)


def test_other_systems_are_refused() -> None:
    with pytest.raises(UsageError, match="no service for win32"):
        plan("win32")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with a systemctl."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "systemctl").write_text(SYSTEMCTL.replace("{python}", sys.executable))
    (tools / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("P2PC_HOME", str(tmp_path / "my home 100%"))
    (tmp_path / "my home 100%").mkdir()
    (tmp_path / "my home 100%" / "config.toml").write_text('[node]\ninterfaces = ["lo"]\ndiscover = false\n')
    return tools


def test_install_status_uninstall(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def p2pc(*words: str) -> tuple[int, str, str]:
        code = run_command(words)
        return (code, *capsys.readouterr())

    assert p2pc("service", "status")[0] == 5
    try:
        code, _, err = p2pc("service", "install")
        assert code == 0 and "it runs now" in err
        pid = int((place / "pid").read_text())
        code, out, _ = p2pc("service", "status", "--json")
        assert code == 0 and json.loads(out)["running"]
        process = psutil.Process(pid)
        end = time.monotonic() + 30
        while p2pc("status")[0] != 0:
            assert time.monotonic() < end, (place / "log").read_text()
            time.sleep(0.05)
        assert process.cmdline()[-1] == "node"
        assert process.environ()["P2PC_HOME"].endswith("my home 100%")
        code, _, err = p2pc("service", "uninstall")
        assert code == 0 and "removed" in err and not psutil.pid_exists(pid)
    finally:
        if (place / "pid").exists():
            pid = int((place / "pid").read_text())
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
    assert not list((place.parent / "config").rglob("*.service"))
    assert (place / "calls").read_text().splitlines()[-1] == "daemon-reload"
    code, _, err = p2pc("service", "uninstall")
    assert code == 0 and "no service is installed" in err


def test_an_installation_that_fails_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROKEN", "1")
    assert run_command(["service", "install"]) == 5
    assert "the disk is full" in capsys.readouterr().err
    assert not list((place.parent / "config").rglob("*.service"))
    before = set(psutil.Process().children())
    assert run_command(["node", "start", "--name", "nova"]) == 0
    try:
        assert run_command(["service", "install"]) == 5
        assert "the node runs again as before" in capsys.readouterr().err, "it has given way for nothing"
        assert run_command(["status"]) == 0 and capsys.readouterr().out.startswith("nova is idle")
    finally:
        assert run_command(["node", "stop", "--now"]) == 0
        for child in set(psutil.Process().children()) - before:  # of this process, which is the command here
            child.wait(20)


def test_a_dry_run_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["service", "install", "--dry-run"]) == 0
    assert "ExecStart=" in capsys.readouterr().out
    assert not (place.parent / "config").exists() and not (place / "calls").exists()


def test_windows_begins_a_node_in_its_subsystem_for_linux(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a stand-in for schtasks.exe: it begins what the task names, with nothing of the terminal's environment."""

    def p2pc(*words: str) -> tuple[int, str, str]:
        code = run_command(words)
        return (code, *capsys.readouterr())

    (place / "schtasks.exe").write_text(SCHTASKS.replace("{python}", sys.executable))
    (place / "schtasks.exe").chmod(0o755)
    monkeypatch.setenv("WSL_DISTRO_NAME", "Debian")
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("P2PC_NO_AUTOSTART", "1")
    real = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: path != "/run/systemd/system" and real(path))
    code, out, _ = p2pc("service", "install", "--dry-run")
    assert code == 0 and "$ schtasks.exe /Create /TN org.p2pcompute.node /SC ONLOGON /TR" in out
    assert not (place.parent / "config").exists()
    try:
        assert p2pc("service", "install")[0] == 0
        end = time.monotonic() + 30
        while p2pc("service", "status", "--json")[0] != 0:
            assert time.monotonic() < end, (place / "log").read_text()
            time.sleep(0.05)
        code, _, err = p2pc("service", "uninstall")
        assert code == 0 and "removed" in err
        assert p2pc("status")[0] == 5 and not list(place.glob("*.task"))
    finally:
        p2pc("node", "stop", "--now")
    assert not list((place.parent / "config").rglob("service.sh"))


def test_a_task_of_windows_is_refused_where_it_could_not_work() -> None:
    with pytest.raises(UsageError, match="for all users"):
        plan("wsl", is_system=True, WSL_DISTRO_NAME="Debian", USER="ada")
    for environ in ({}, {"WSL_DISTRO_NAME": "Debian"}, {"WSL_DISTRO_NAME": "D" * 250, "USER": "ada"}):
        with pytest.raises(UsageError, match="cannot begin a node here"):
            plan("wsl", **environ)
    script = plan("wsl", WSL_DISTRO_NAME="Debian", USER="ada", P2PC_HOME="/srv/my $HOME's").files[0][1]
    assert (
        subprocess.run(
            ["/bin/sh", "-c", script.replace("exec ", "printenv P2PC_HOME #")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        == "/srv/my $HOME's\n"
    )
