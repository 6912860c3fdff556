"""`p2pc doctor`: what this machine can do, tried, and what would make it better.  It changes nothing but `--bundle`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click

from p2pcompute.cli.command import Command, json_option
from p2pcompute.cli.daemon_start import running_pid
from p2pcompute.cli.output import print_json, say
from p2pcompute.config import Settings, load_settings
from p2pcompute.execution.cgroups import NoCgroup, find_own
from p2pcompute.execution.environments import find_uv
from p2pcompute.execution.installing import install_command
from p2pcompute.execution.levels import Level
from p2pcompute.execution.sandbox import NoSandbox, find_bubblewrap, find_pasta
from p2pcompute.execution.sandbox_trial import Isolation, isolation
from p2pcompute.places import Paths, find_paths

_SIGNS: Final = {True: "ok", False: "!!", None: "--"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    is_good: bool | None
    """None: it is not needed here."""
    what: str
    fix: str = ""
    """A command, or what to do; empty when there is nothing to do."""


@click.command(
    cls=Command,
    examples=[
        ("p2pc doctor", ""),
        ("p2pc doctor --json", "for programs"),
        ("p2pc doctor --bundle report.zip", "what a bug report needs, without names, addresses, keys and commands"),
    ],
)
@click.option("--bundle", metavar="FILE", type=click.Path(path_type=Path), help="Write a bug report as a ZIP file.")
@json_option
def doctor(bundle: Path | None, json_: bool) -> int:
    """Check this machine and say what to do.

    Exit code 0: all is well; 1: something should be done.
    """
    paths = find_paths(os.environ)
    settings = load_settings(paths, os.environ, warn=lambda text: say(f"warning: {text}"))
    checks = list(_checks(paths, settings))
    found = [asdict(check) for check in checks]
    if json_ and bundle is None:
        print_json({"schema": "p2pc.doctor/1", "checks": found})
    elif not json_:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{_SIGNS[check.is_good]}  {check.name:{width}}  {check.what}")
            if check.fix and not check.is_good:
                print(f"    {'':{width}}  fix: {check.fix}")
    if bundle is not None:
        from p2pcompute.cli.bug_report import write_report

        report = write_report(bundle, paths, settings, found)
        if json_:
            print_json({"schema": "p2pc.doctor/1", "checks": found, "report": report})
        else:
            say(f"{report['path']}:")
            for name, size in report["parts"].items():
                say(f"  {name:14} {size:>9,} bytes")
            say(f"replaced: {report['replaced']}; look through it before you send it")
    return int(any(check.is_good is False for check in checks))


def _checks(paths: Paths, settings: Settings) -> Iterator[Check]:
    accept = settings.node.accept
    is_needed = accept == "sandboxed"
    hidden = (paths.base, paths.data, paths.store, paths.state, paths.config_file.parent, paths.socket.parent)
    tried = isolation("wasm" if accept == "wasm" else "sandboxed", hidden)
    works = tried.level is Level.SANDBOX
    yield _work_of_others(accept, tried)
    try:
        yield Check("bubblewrap", True, find_bubblewrap())
    except NoSandbox as error:
        yield Check("bubblewrap", False if is_needed else None, str(error), error.fix)
    else:
        if works:
            yield Check("sandbox", True, "one was started: namespaces, system calls and limits are in place")
        else:
            yield Check("sandbox", False if is_needed else None, tried.why, tried.fix)
    is_there = find_spec("wasmtime") is not None
    fix = "" if is_there else install_command("wasmtime>=50")
    what = "runs WASM modules" if is_there else "is not installed: this node runs no WASM modules, its user's neither"
    yield Check("wasmtime", True if is_there else False if accept == "wasm" else None, what, fix)
    uv = find_uv()
    what = f"installs the Python packages of jobs that bring some: {uv}"
    missing = "is not installed: jobs with Python packages of their own (run --deps) do not run here, nor start here"
    yield Check("uv", None if uv is None else True, what if uv else missing, "" if uv else install_command("uv>=0.9"))
    if works:
        has_landlock = tried.landlock > 0
        what = f"version {tried.landlock}" if has_landlock else "this kernel has none; mounts alone decide what is seen"
        yield Check("Landlock", True if has_landlock else None, what)
        user = "a user of nobody's" if os.geteuid() == 0 else "your user number, in a user namespace without rights"
        yield _limits_of_memory(paths)
        yield _network(settings)
        yield Check("user", True, f"tasks of others run under {user}")


def _limits_of_memory(paths: Paths) -> Check:
    """Who holds sandboxes to their memory, processes and processor time: the kernel, or we by watching."""
    name = "control groups"
    watched = "memory and CPU time of sandboxes are watched 20 times a second instead"
    pid = running_pid(paths)
    if pid is None:
        return Check(name, None, f"are looked for when the node runs; without, {watched}")
    try:
        own = find_own(pid)
    except NoCgroup as error:
        fix = "p2pc service install" if os.path.isdir("/run/systemd/system") else ""
        return Check(name, None, f"none for the node: {error}; {watched}", fix)
    return Check(name, True, f"the kernel limits memory, processes and CPU time of sandboxes, below {own}")


def _network(settings: Settings) -> Check:
    name = "task network"
    if settings.node.network == "none":
        return Check(name, None, "tasks of others get none (node.network is none)")
    try:
        return Check(name, True, f"tasks of others that ask for it reach public addresses, by {find_pasta()}")
    except NoSandbox as error:
        return Check(name, False, f"tasks of others get none: {error}", error.fix)


def _work_of_others(accept: str, tried: Isolation) -> Check:
    name = "work of others"
    match accept:
        case "none":
            return Check(name, None, "is not taken (node.accept is none)")
        case "all":
            fix = "p2pc config set node.accept sandboxed" if tried.level is Level.SANDBOX else ""
            return Check(name, None, "runs as you, without a sandbox (node.accept is all)", fix)
    if tried.level is Level.WASM:
        what = "is taken only when it is a WASM module, and runs in a process that has shut itself in"
        return Check(name, True if accept == "wasm" else None, what, tried.fix)
    if tried.level is Level.SANDBOX:
        return Check(name, True, "runs in sandboxes" + (", only when it is a WASM module" if tried.only_wasm else ""))
    return Check(name, False, "is refused, since there is no sandbox", tried.fix)
