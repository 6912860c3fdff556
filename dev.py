#!/usr/bin/env python3
"""Set up and run this source tree: `python3 dev.py demo`, `python3 dev.py test`.  Needs Python 3.11+ and nothing else.

Makes .venv with the versions pinned in constraints.txt.  `test` installs, on Debian or Ubuntu as root, the system
packages that the tests use; elsewhere tests that cannot run are skipped with their reason, counted at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
P2PC = VENV / "bin" / "p2pc"
PYTHON_MIN = (3, 11)
SYSTEM_PACKAGES = [
    *("povray", "povray-examples", "ffmpeg"),
    *("iproute2", "parallel", "bubblewrap", "passt", "libfaketime"),
    *("gcc", "libc6-dev", "clang", "lld", "wasi-libc", "libclang-rt-dev-wasm32"),
    *("podman", "runc"),
]
"""What the tests and examples use: the programs of examples/povray and examples/video, network namespaces, a reader of
our joblogs, sandboxes and their networks, a clock that jumps, compilers for this machine and for WASI, containers."""
VERBS = {
    "setup": "make .venv with everything for development",
    "demo": "estimate pi on all cores of this machine",
    "test": "all tests, in two processes; further words go to pytest instead",
    "check": "formatting, lint, types, import rules",
    "bench": "benchmarks side by side with other engines",
    "soak": "the long drills: kill, stop and restart daemons under load",
    "sim-soak": "random faults over many simulated meshes: sim-soak [MINUTES [FIRST_SEED]]",
    "fuzz": "hostile bytes for every parser that others reach: fuzz [SECONDS_EACH [NAME ...]]",
    "wheel": "build a wheel and try it in an empty environment",
}


def call(*command: str | Path, cwd: Path = ROOT, **env: str) -> int:
    """Run a command; return its exit code."""
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env={**os.environ, **env}, check=False).returncode


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> None:
    """Run a command; its failure is ours."""
    code = call(*command, cwd=cwd, **env)
    if code:
        sys.exit(code)


# --- setting up -----------------------------------------------------------------------------------


def is_debian_root() -> bool:
    return shutil.which("apt-get") is not None and os.geteuid() == 0


def apt_install(packages: list[str]) -> None:
    run("apt-get", "-qq", "update", DEBIAN_FRONTEND="noninteractive")
    run("apt-get", "-qq", "-y", "--no-install-recommends", "install", *packages, DEBIAN_FRONTEND="noninteractive")


def make_venv(directory: Path) -> None:
    """Make a virtual environment; on Debian without python3-venv install that first (root) or say how."""
    made = subprocess.run([sys.executable, "-m", "venv", str(directory)], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        return
    shutil.rmtree(directory, ignore_errors=True)
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if not is_debian_root():
        print(made.stdout + made.stderr, file=sys.stderr)
        sys.exit(f"error: Python cannot make a virtual environment here\n  fix:  install {package}, then try again")
    apt_install([package])
    run(sys.executable, "-m", "venv", directory)


def pip_install(python: Path, *words: str | Path) -> None:
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", constraints, *words)


def install(*extras: str) -> None:
    """Install the tree, editable, with these extras; skipped when nothing has changed since the last time."""
    if not PYTHON.exists():
        make_venv(VENV)
    wanted = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    stamp = VENV / f".installed-{'-'.join(extras) or 'base'}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("setting up .venv …", file=sys.stderr)
    pip_install(PYTHON, "-e", f".[{','.join(extras)}]" if extras else ".")
    stamp.write_text(wanted)


def is_installed(package: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    query = ["dpkg-query", "-W", "-f=${Status}", package]
    return "install ok installed" in subprocess.run(query, capture_output=True, text=True, check=False).stdout


def install_system_packages() -> None:
    missing = [name for name in SYSTEM_PACKAGES if not is_installed(name)]
    if not missing:
        return
    if is_debian_root():
        print(f"installing {', '.join(missing)} …", file=sys.stderr)
        apt_install(missing)
    else:
        print(f"note: tests that need {', '.join(missing)} may be skipped", file=sys.stderr)


# --- verbs ----------------------------------------------------------------------------------------


def demo(words: list[str]) -> None:
    """Run the demo with a node that lives as long as the command, apart from an installation of this user."""
    install()
    with tempfile.TemporaryDirectory(prefix="p2pc-demo-") as home:
        # CI tells p2pc that nothing may stay behind.
        code = call(P2PC, "demo", *words, P2PC_HOME=home, CI="1")
    sys.exit(code)


TWO_AT_ONCE = ["-n", "2", "--dist", "loadfile"] if (os.cpu_count() or 1) > 1 else []
"""All tests in half the time.  Files stay whole: their fixtures and ports are made for one process."""


def run_tests(words: list[str], **env: str) -> None:
    install("test")
    install_system_packages()
    run(PYTHON, "-m", "pytest", *words, **env)


def check() -> None:
    """Run every check, also after one has failed."""
    install("check")
    codes = {
        "formatting": call(PYTHON, "-m", "ruff", "format", "--check", "--quiet", "."),
        "lint": call(PYTHON, "-m", "ruff", "check", "."),
        "types": call(PYTHON, "-m", "mypy"),
        "import rules": call(VENV / "bin" / "lint-imports"),
    }
    failed = [name for name, code in codes.items() if code]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def wheel() -> None:
    """Build a wheel and run it from an empty environment, outside the tree, with nothing of this user."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="p2pc-wheel-") as name:
        place = Path(name)
        make_venv(place / "venv")
        python, p2pc = place / "venv" / "bin" / "python", place / "venv" / "bin" / "p2pc"
        run(python, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "-w", dist, ROOT)
        (built,) = dist.glob("*.whl")
        pip_install(python, built)
        scenarios = "import importlib.resources as r; assert (r.files('p2pcompute.simulation') / 'scenarios').is_dir()"
        run(python, "-P", "-c", scenarios, cwd=place)
        run(p2pc, "--version", cwd=place)
        words = ["run", "-k", "echo {}", ":::", "from", "the", "wheel"]
        run(p2pc, *words, cwd=place, P2PC_HOME=str(place / "home"), CI="1")
    print(f"built and tried: {built.relative_to(ROOT)}", file=sys.stderr)


SOAK_MINUTES = 60.0
SOAK_SEEDS_AT_ONCE = 20
SOAK_SCENARIOS = ("swarm", "swarm", "swarm", "hostile", "partition", "lossy", "gray")
"""One after the other; the swarm more often, since it draws the kinds of faults themselves."""


def sim_soak(rest: list[str]) -> None:
    """Run seed after seed until the time is over; each that fails prints the command that replays it."""
    try:
        minutes = float(rest[0]) if rest else SOAK_MINUTES
        seed = int(rest[1]) if len(rest) > 1 else int(time.time())  # other seeds each night
    except ValueError:
        sys.exit("error: sim-soak takes minutes and, if you like, a first seed")
    install("test")
    end = time.monotonic() + minutes * 60
    seeds = failed = turn = 0
    while time.monotonic() < end:
        scenario = SOAK_SCENARIOS[turn % len(SOAK_SCENARIOS)]
        turn += 1
        count = SOAK_SEEDS_AT_ONCE if scenario == "swarm" else SOAK_SEEDS_AT_ONCE // 10
        words = ["sim", "run", scenario, "--seed", str(seed), "--seeds", str(count), "--no-plot", "--quiet"]
        failed += bool(call(P2PC, *words))
        seeds, seed = seeds + count, seed + count
        print(f"{seeds} seeds, {failed} rounds with failures, {(end - time.monotonic()) / 60:.0f} min left", flush=True)
    sys.exit(1 if failed else 0)


def main() -> None:
    if sys.version_info < PYTHON_MIN:
        sys.exit(f"error: p2pcompute needs Python 3.11 or later, this is {sys.version.split()[0]}")
    verbs = "\n".join(f"  {name:8} {what}" for name, what in VERBS.items())
    parser = argparse.ArgumentParser(description=__doc__, epilog=verbs, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on to p2pc, pytest or the benchmark")
    given = parser.parse_args()
    if given.verb == "setup":
        install("test", "check")
    elif given.verb == "demo":
        demo(given.rest)
    elif given.verb == "test":
        run_tests(given.rest or TWO_AT_ONCE)
    elif given.verb == "check":
        check()
    elif given.verb == "bench":
        install("bench")
        run(PYTHON, "benchmarks/peers.py", *given.rest)
    elif given.verb == "soak":
        run_tests(["-m", "drill", "-s", *given.rest], P2PC_SOAK="1")
    elif given.verb == "sim-soak":
        sim_soak(given.rest)
    elif given.verb == "fuzz":
        install("test")
        run(PYTHON, "-m", "tests.fuzz.surfaces", *(given.rest or ["600"]))
    elif given.verb == "wheel":
        wheel()


if __name__ == "__main__":
    main()
