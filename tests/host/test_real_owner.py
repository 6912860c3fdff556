"""Whether somebody uses the machine, by what its system tells: programs of the system stand in here as scripts."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from p2pcompute.host import real_owner
from p2pcompute.host.real_owner import AWAY_S, idle_s, is_present
from p2pcompute.host.real_probe import RealProbe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="logind and utmp are Linux's")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without logind and utmp, until a test adds them."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "dev" / "pts").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin{os.pathsep}/usr/bin")
    logind(tmp_path, "exit 1")
    return tmp_path


def logind(system: Path, script: str) -> None:
    program = system / "bin" / "loginctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def sessions(system: Path, *blocks: str) -> None:
    names = "".join(f"{number} 1000 ann seat0 -\\n" for number in range(1, len(blocks) + 1))
    (system / "told").write_text("\n\n".join(blocks) + "\n")
    logind(system, f"[ $1 = list-sessions ] && printf '{names}' || cat {system / 'told'}")


def session(**properties: str) -> str:
    known = {"Class": "user", "State": "active", "Type": "tty", "TTY": "", "IdleHint": "no", "IdleSinceHint": "0"}
    return "\n".join(f"{name}={value}" for name, value in (known | properties).items())


def terminal(system: Path, name: str, age_s: float) -> None:
    (system / "dev" / name).touch()
    os.utime(system / "dev" / name, (time.time() - age_s,) * 2)


def idle(system: Path) -> float | None:
    return idle_s(devices=system / "dev", utmp=[system / "utmp"])


def test_unknown_where_nothing_tells(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node in a container says that nobody is there, and takes the whole machine."""
    assert idle(system) is None
    logind(system, "exec sleep 60")
    monkeypatch.setattr(real_owner, "ASK_S", 0.2)
    assert idle(system) is None


def test_a_desktop_says_whether_its_person_is_away(system: Path) -> None:
    since = int((time.time() - 500) * 1e6)
    away = session(Type="wayland", IdleHint="yes", IdleSinceHint=str(since))
    sessions(system, away)
    assert 499 < (idle(system) or 0) < 510
    sessions(system, away, session(Type="x11"))
    assert idle(system) == 0.0
    sessions(system, away, session(Type="x11", Class="greeter"), session(Type="x11", State="closing"))
    assert 499 < (idle(system) or 0) < 510, "a login screen is nobody"


def test_a_terminal_is_as_idle_as_its_last_input(system: Path) -> None:
    terminal(system, "pts/3", 40)
    terminal(system, "tty2", 4000)
    sessions(system, session(TTY="pts/3", State="online"), session(TTY="tty2"), session(TTY="../../etc/passwd"))
    assert 39 < (idle(system) or 0) < 45
    sessions(system, session(TTY="tty2"))
    assert 3999 < (idle(system) or 0) < 4010
    sessions(system)
    assert idle(system) == float("inf"), "nobody is logged in"


def test_a_clock_that_was_set_back_makes_nobody_present(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken: whoever touched the machine before its clock was set back by a day is there for another day."""
    terminal(system, "pts/3", -86400)
    sessions(system, session(TTY="pts/3"))
    assert idle(system) == pytest.approx(0.0, abs=5.0)
    later = time.monotonic() + 1000
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert idle(system) == pytest.approx(1000.0, abs=5.0)
    terminal(system, "pts/3", -86000)
    assert idle(system) == pytest.approx(0.0, abs=5.0), "touched again"
    since = {
        "IdleSinceHint": str(int((time.time() + 86400) * 1e6)),
        "IdleSinceHintMonotonic": str(int(later - 7) * 10**6),
    }
    sessions(system, session(Type="wayland", IdleHint="yes", **since))
    assert idle(system) == pytest.approx(7.0, abs=2.0)


def test_without_logind_those_of_utmp_count(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(system, "pts/3", 40)
    (system / "utmp").touch()
    monkeypatch.setattr(real_owner, "_logged_in", lambda: ["pts/3", "pts/9", ""])
    assert 39 < (idle(system) or 0) < 45


def test_macos_says_it_of_keyboard_and_mouse(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_owner.sys, "platform", "darwin")  # type: ignore[attr-defined]
    (system / "bin" / "ioreg").write_text("#!/bin/sh\necho '  |   \"HIDIdleTime\" = 4500000000'\n")
    (system / "bin" / "ioreg").chmod(0o755)
    assert idle(system) == 4.5


async def test_the_probe_says_it_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = [AWAY_S - 1]
    monkeypatch.setattr(real_owner, "idle_s", lambda: asked[-1])
    probe = RealProbe(tmp_path)
    said = (await probe.attributes(["owner.present"]))["owner.present"]
    assert said.value is True and said.lifetime_s == 60
    asked.append(AWAY_S)
    assert (await probe.attributes(["owner.present"]))["owner.present"] is said, "asked a moment ago"
    assert is_present() is False
    probe = RealProbe(tmp_path)
    asked.append(None)
    assert "owner.present" not in await probe.attributes(["owner.present"]), "unknown, not false"
    assert "owner.present" not in await RealProbe(tmp_path).attributes(["load"])
