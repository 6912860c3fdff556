"""`service`: the node starts with the computer, by the system's own means.

Linux: a systemd unit, of this user or (``--system``) of the machine.  macOS: a launchd agent of this user, written
after launchd.plist(5), and untried.  Windows: the node runs in the Windows Subsystem for Linux; where that has no
systemd, a task of Windows' Task Scheduler begins it when its user logs in, untried too.  `plan_for` decides what is
written and called; ``--dry-run`` prints it.

Source: systemd.service(5), systemd.exec(5), sysusers.d(5); launchd.plist(5), launchctl(1); schtasks and wsl.exe in
Microsoft's reference of commands.
"""

from __future__ import annotations

import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from p2pcompute.cli.command import CONTEXT, Command, CommandGroup, json_option
from p2pcompute.cli.output import print_json, say
from p2pcompute.config import ENVIRONMENT_PREFIX
from p2pcompute.errors import ConfigError, NodeUnavailable, UsageError
from p2pcompute.places import Paths, find_paths

UNIT: Final = "p2pc.service"
LABEL: Final = "org.p2pcompute.node"
WSL: Final = "wsl"
"""`plan_for`'s name for the Windows Subsystem for Linux without systemd."""
TASK_CHARS_MAX: Final = 261
"""What schtasks takes as the command of a task."""
STOP_S: Final = 75
"""The system's patience: longer than a node drains (STOP_GRACE_S)."""
COMMAND_S_MAX: Final = 90.0
EXIT_DOWN: Final = 5
"""As `status`: nothing runs."""
_CARRIED: Final = (
    "P2PC_HOME",
    "P2PC_CONFIG",
    "P2PC_SOCKET",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
    "PATH",
)
"""Variables of the terminal that the node of a user needs too: where its things are, and the user's programs.  Settings
(``P2PC_NODE__NAME``) go along with them."""
_SYSTEM_HOME: Final = Path("/var/lib/p2pc")
_SYSTEM_CONFIG: Final = Path("/etc/p2pc/config.toml")
_SYSTEM_SOCKET: Final = Path("/run/p2pc/p2pc.sock")
_SYSTEM_USER: Final = "p2pc"

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_Call = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """What makes the node a service of one system."""

    files: tuple[tuple[Path, str], ...]
    """What is written where; the service's own file is the first."""
    starts: tuple[_Call, ...]
    """Commands that install and start it."""
    stops: tuple[_Call, ...]
    """Commands that stop it and forget it, while its file is there."""
    forgets: tuple[_Call, ...]
    """Commands for when its file is gone."""
    looks: _Call
    """Prints the state of the service; see `_is_active`."""


def plan_for(
    system: str, *, is_system: bool, environ: Mapping[str, str], python: str, user_id: int, home: Path
) -> ServicePlan:
    """Return what is to be written and called.  Touches nothing.

    Args:
        system: as `sys.platform` names it, or WSL.
        is_system: for the machine, not for this user.
        environ: of the terminal; what of it the node needs goes along, for a user's service.
        python: the interpreter that has p2pcompute.
        user_id: of the user, for launchd's domain.
        home: of the user.

    Raises:
        UsageError: there is no such service on this system.
    """
    own = sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX) and "__" in name)
    carried = {} if is_system else {name: environ[name] for name in (*_CARRIED, *own) if environ.get(name)}
    if system.startswith("linux"):
        return _systemd_plan(carried, [python, "-P", "-m", "p2pcompute", "node"], home, environ, is_system=is_system)
    if system == "darwin":
        return _launchd_plan(carried, [python, "-P", "-m", "p2pcompute", "node"], home, user_id, is_system=is_system)
    if system == WSL:
        return _task_plan(carried, [python, "-P", "-m", "p2pcompute"], home, environ, is_system=is_system)
    raise UsageError(
        f"there is no service for {system}",
        "the node runs on Linux and macOS",
        "on Windows: install it in the Windows Subsystem for Linux",
        code="service",
    )


# --- systemd --------------------------------------------------------------------------------------


def _systemd_word(text: str) -> str:
    """Return a word of ExecStart or Environment: specifiers and variables are not expanded in it."""
    if any(ord(character) < 32 for character in text):
        raise UsageError(
            f"{text!r} cannot be written into a unit", "it holds control characters", "install p2pc elsewhere"
        )
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _systemd_plan(
    carried: Mapping[str, str], command: list[str], home: Path, environ: Mapping[str, str], *, is_system: bool
) -> ServicePlan:
    lines = [
        "[Unit]",
        "Description=p2pcompute node",
        "Wants=network-online.target" if is_system else "",
        "After=network-online.target" if is_system else "",
        "",
        "[Service]",
        # A dollar is a variable in ExecStart only.
        "ExecStart=" + " ".join(_systemd_word(word).replace("$", "$$") for word in command),
        *[f"Environment={_systemd_word(f'{name}={value}')}" for name, value in carried.items()],
    ]
    if is_system:
        lines += [
            f"User={_SYSTEM_USER}",
            f"Group={_SYSTEM_USER}",
            f"Environment=P2PC_HOME={_SYSTEM_HOME}",
            f"Environment=P2PC_CONFIG={_SYSTEM_CONFIG}",
            f"Environment=P2PC_SOCKET={_SYSTEM_SOCKET}",
            "StateDirectory=p2pc",
            "StateDirectoryMode=0700",
            "RuntimeDirectory=p2pc",
            "RuntimeDirectoryMode=0700",
            "ProtectSystem=strict",
            "ProtectHome=yes",
            "PrivateTmp=yes",
            "UMask=0077",
        ]
    lines += [
        "# The first signal drains; a node drains for at most 60 s.",
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_S}",
        "Restart=on-failure",
        "RestartSec=5",
        "# Exit code 2: the settings are wrong, which no restart mends.",
        "RestartPreventExitStatus=2",
        "NoNewPrivileges=yes",
        "# Its tasks may have limits of their own.",
        "Delegate=yes",
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if is_system else 'default.target'}",
    ]
    unit = "\n".join(line for number, line in enumerate(lines) if line or lines[number - 1]) + "\n"
    given = environ.get("XDG_CONFIG_HOME", "")
    of_user = (Path(given) if given.startswith("/") else home / ".config") / "systemd" / "user"
    folder = Path("/etc/systemd/system") if is_system else of_user
    systemctl: _Call = ("systemctl",) if is_system else ("systemctl", "--user")
    files: list[tuple[Path, str]] = [(folder / UNIT, unit)]
    starts: list[_Call] = [(*systemctl, "daemon-reload"), (*systemctl, "enable", "--now", UNIT)]
    if is_system:
        files.append((Path("/etc/sysusers.d/p2pc.conf"), f'u {_SYSTEM_USER} - "p2pcompute node" {_SYSTEM_HOME}\n'))
        starts.insert(0, ("systemd-sysusers", "/etc/sysusers.d/p2pc.conf"))
    return ServicePlan(
        files=tuple(files),
        starts=tuple(starts),
        stops=((*systemctl, "disable", "--now", UNIT),),
        forgets=((*systemctl, "daemon-reload"),),
        looks=(*systemctl, "is-active", UNIT),
    )


# --- launchd --------------------------------------------------------------------------------------


def _launchd_plan(
    carried: Mapping[str, str], command: list[str], home: Path, user_id: int, *, is_system: bool
) -> ServicePlan:
    if is_system:
        raise UsageError(
            "there is no service for all users on macOS yet",
            "it needs a user of its own, which has to be made by hand there",
            "without --system: p2pc service install",
            code="service",
        )
    domain = f"gui/{user_id}"
    file = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    settings: dict[str, Any] = {
        "Label": LABEL,
        "ProgramArguments": command,
        "EnvironmentVariables": dict(carried),
        "RunAtLoad": True,
        # Not after a node that ended by itself: a stop is a stop.
        "KeepAlive": {"SuccessfulExit": False},
        "ProcessType": "Background",
        "ExitTimeOut": STOP_S,
    }
    target = f"{domain}/{LABEL}"
    return ServicePlan(
        files=((file, plistlib.dumps(settings).decode()),),
        starts=(("launchctl", "bootstrap", domain, str(file)),),
        stops=(("launchctl", "bootout", target),),
        forgets=(),
        looks=("launchctl", "print", target),
    )


# --- Task Scheduler -------------------------------------------------------------------------------


def _task_plan(
    carried: Mapping[str, str], command: list[str], home: Path, environ: Mapping[str, str], *, is_system: bool
) -> ServicePlan:
    if is_system:
        raise UsageError(
            "there is no service for all users in the Windows Subsystem for Linux without systemd",
            "Windows begins it for one user, when that one logs in",
            "without --system: p2pc service install; or switch systemd on in /etc/wsl.conf",
            code="service",
        )
    distribution, user = environ.get("WSL_DISTRO_NAME", ""), environ.get("USER", "")
    file = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "p2pc" / "service.sh"
    begins = ["wsl.exe", "-d", distribution, "-u", user, "--exec", "/bin/sh", str(file)]
    shown = subprocess.list2cmdline(begins)
    if not distribution or not user or len(shown) > TASK_CHARS_MAX:
        raise UsageError(
            "Windows' Task Scheduler cannot begin a node here",
            f"the command of a task has at most {TASK_CHARS_MAX} characters, and names distribution and user: {shown}",
            "start it when a terminal opens, in ~/.profile: p2pc node start",
            code="service",
        )
    exports = [f"export {name}={shlex.quote(value)}" for name, value in carried.items()]
    task = ("schtasks.exe", "/TN", LABEL)
    return ServicePlan(
        files=((file, "\n".join(["#!/bin/sh", *exports, f"exec {shlex.join([*command, 'node'])}", ""])),),
        starts=((task[0], "/Create", *task[1:], "/SC", "ONLOGON", "/TR", shown, "/F"), (task[0], "/Run", *task[1:])),
        stops=((*command, "node", "stop"), (task[0], "/Delete", *task[1:], "/F")),
        forgets=(),
        looks=(*command, "status", "--json"),
    )


# --- doing it -------------------------------------------------------------------------------------


def _service_options(command: _Decorated) -> _Decorated:
    command = click.option("--dry-run", is_flag=True, help="Print the file and the commands only.")(command)
    return click.option("--system", is_flag=True, help="For all users; needs administrator rights.")(command)


def _plan(*, is_system: bool) -> ServicePlan:
    home = Path(os.environ.get("HOME") or Path.home())
    plan = plan_for(
        WSL if "WSL_DISTRO_NAME" in os.environ and not os.path.isdir("/run/systemd/system") else sys.platform,
        is_system=is_system,
        environ=os.environ,
        python=sys.executable,
        user_id=os.getuid(),
        home=home,
    )
    tool = plan.starts[-1][0]
    if shutil.which(tool) is None:
        raise UsageError(
            f"there is no {tool} on this computer",
            "services are started by it",
            "start the node another way, for example from cron: @reboot "
            + shlex.join([sys.executable, "-P", "-m", "p2pcompute", "node", "start"]),
            code="service",
        )
    return plan


def _show(files: tuple[tuple[Path, str], ...], calls: tuple[_Call, ...]) -> None:
    for path, text in files:
        print(f"# {path}\n{text}")
    for call in calls:
        print(f"$ {shlex.join(call)}")


def _call(call: _Call) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(call, capture_output=True, text=True, check=False, timeout=COMMAND_S_MAX)
    except subprocess.TimeoutExpired as error:
        raise NodeUnavailable(
            f"{shlex.join(call)} does not end", f"after {COMMAND_S_MAX:.0f} s", "run it by hand to see why"
        ) from error


def _call_all(calls: tuple[_Call, ...]) -> None:
    """Call one after the other.

    Raises:
        NodeUnavailable: one of them failed; the others after it were not called.
    """
    for call in calls:
        done = _call(call)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            is_busless = "bus" in said.lower()
            fix = "mend that, then try again"
            if is_busless and not os.path.isdir("/run/systemd/system"):
                fix = "systemd does not run here, as in containers: p2pc node start"
            elif is_busless and "--user" in call:
                fix = "log in as this user, not by su or sudo, or: p2pc service install --system"
            why = said or f"exit code {done.returncode}"
            raise NodeUnavailable(f"{shlex.join(call)} failed", why, fix, code="service")


def _check_rights(plan: ServicePlan, *, is_system: bool) -> None:
    if is_system and os.geteuid() != 0:
        raise UsageError(
            "a service for all users needs administrator rights",
            f"{plan.files[0][0]} belongs to the system",
            "sudo p2pc service …, or without --system for this user alone",
            code="service",
        )


def _check_reachable(python: str) -> None:
    """Refuse an interpreter in somebody's home: the system's user could not read it.

    Raises:
        ConfigError: it is in one.
    """
    places = {Path(python).parent, Path(__file__).resolve().parent, Path(python).resolve().parent}
    for place in sorted(places):
        closed = next((one for one in [place, *place.parents] if not one.stat().st_mode & 0o001), None)
        if closed is not None:
            raise ConfigError(
                f"the user {_SYSTEM_USER} cannot start this p2pc",
                f"it is in {place}, and {closed} is closed to others",
                "install it for all: python3 -m venv /opt/p2pc && /opt/p2pc/bin/pip install p2pcompute, "
                "then sudo /opt/p2pc/bin/p2pc service install --system",
                code="service",
            )


def _is_active(plan: ServicePlan) -> bool:
    return _call(plan.looks).returncode == 0


def _write(files: tuple[tuple[Path, str], ...]) -> None:
    """Write files.

    Raises:
        ConfigError: one cannot be written.
    """
    for path, text in files:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"cannot write {path}", error.strerror or str(error), "make it writable, then try again"
            ) from error


def _remove(files: tuple[tuple[Path, str], ...]) -> list[Path]:
    """Remove those that are there; return them."""
    removed = []
    for path, _text in files:
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"cannot remove {path}", error.strerror or str(error), f"remove it: rm {path}") from error
        removed.append(path)
    return removed


@click.group(cls=CommandGroup, context_settings=CONTEXT)
def service() -> None:
    """Start the node with the computer."""


@service.command(
    cls=Command,
    examples=[
        ("p2pc service install", "at each login of this user"),
        ("sudo p2pc service install --system", "with the computer, as a user of its own"),
        ("p2pc service install --dry-run", "what would be written and called"),
    ],
)
@_service_options
def install(system: bool, dry_run: bool) -> int:
    """Install and start it (for this user by default)."""
    plan = _plan(is_system=system)
    if dry_run:
        _show(plan.files, plan.starts)
        return 0
    _check_rights(plan, is_system=system)
    if system:
        _check_reachable(sys.executable)
    had = plan.files[0][0].exists()
    _write(plan.files)
    former: dict[str, str] | None = None
    try:
        _call_all(plan.starts[:-1])  # where there is nobody to talk to, a node that runs goes on
        if not system:
            former = _make_room(find_paths(os.environ), plan)
        _call_all(plan.starts[-1:])
    except NodeUnavailable:
        if not had:  # leave nothing behind that would start later by surprise
            for call in plan.stops:
                _call(call)
            _remove(plan.files)
        if former is not None:
            _start_again(former)
        raise
    say(f"installed {plan.files[0][0]}; it runs now and starts {'with the computer' if system else 'when you log in'}")
    if system:
        say(f"  talk to it: sudo -u {_SYSTEM_USER} env P2PC_SOCKET={_SYSTEM_SOCKET} p2pc status", level=1)
    elif sys.platform.startswith("linux") and not _lingers():
        say("  it ends when you log out; to keep it: loginctl enable-linger", level=1)
    say("  remove it: p2pc service uninstall" + (" --system" if system else ""), level=1)
    return 0


def _lingers() -> bool:
    done = (
        _call(("loginctl", "show-user", "--property=Linger", "--value", str(os.getuid())))
        if shutil.which("loginctl")
        else None
    )
    return done is not None and done.stdout.strip() == "yes"


def _make_room(paths: Paths, plan: ServicePlan) -> dict[str, str] | None:
    """Let a node that was started by hand end: two cannot share an identity; return its flags, None when none ran.

    Raises:
        NodeUnavailable: it does not stop.
    """
    from p2pcompute.cli.daemon_start import how_started, is_running, running_pid
    from p2pcompute.cli.node_commands import stop_node

    if not is_running(paths) or _is_active(plan):
        return None
    say(f"the node that runs (pid {running_pid(paths)}) gives way to the service", level=1)
    flags = dict(how_started(paths).flags)
    stop_node(drain=True)
    return flags


def _start_again(flags: Mapping[str, str]) -> None:
    """Start the node that was to give way to a service which could not be started."""
    from p2pcompute.cli.daemon_start import start_background

    pid = start_background(find_paths(os.environ), settings=[f"{key}={value}" for key, value in flags.items()])
    say(f"the node runs again as before, pid {pid}", level=1)


@service.command(cls=Command, examples=[("p2pc service uninstall", "")])
@_service_options
def uninstall(system: bool, dry_run: bool) -> int:
    """Stop it and remove it; identity, group and jobs stay."""
    plan = _plan(is_system=system)
    if dry_run:
        if not plan.files[0][0].exists():
            say("no service is installed; these would remove one")
        _show((), (*plan.stops, *[("rm", str(path)) for path, _ in plan.files], *plan.forgets))
        return 0
    if not plan.files[0][0].exists():
        say("no service is installed" + (" for all users" if system else " for this user"))
        return 0
    _check_rights(plan, is_system=system)
    _call_all(plan.stops)
    removed = _remove(plan.files)
    _call_all(plan.forgets)
    say("removed " + ", ".join(map(str, removed)))
    return 0


@service.command(cls=Command, examples=[("p2pc service status", "")], epilog="Exit codes: 0 it runs, 5 it does not.")
@_service_options
@json_option
def status(system: bool, dry_run: bool, json_: bool) -> int:
    """Is it installed, and does it run?"""
    plan = _plan(is_system=system)
    if dry_run:
        _show((), (plan.looks,))
        return 0
    file = plan.files[0][0]
    is_installed = file.exists()
    is_active = is_installed and _is_active(plan)
    if json_:
        print_json({"schema": "p2pc.service/1", "installed": is_installed, "running": is_active, "file": str(file)})
    elif not is_installed:
        print("not installed; install it: p2pc service install" + (" --system" if system else ""))
    else:
        print(f"installed ({file}) and {'running' if is_active else 'not running; see: ' + _log_hint(system=system)}")
    return 0 if is_active else EXIT_DOWN


def _log_hint(*, system: bool) -> str:
    if sys.platform == "darwin":
        return f"launchctl print gui/{os.getuid()}/{LABEL}"
    return "journalctl " + ("" if system else "--user ") + f"-u {UNIT}"
