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
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
SYSTEM_PACKAGES = ["povray", "povray-examples", "iproute2"]
"""What the tests and examples use: the renderer of examples/povray, and network namespaces."""
VERBS = {
    "setup": "make .venv with everything for development",
    "demo": "estimate pi on all cores of this machine",
    "test": "all tests",
    "check": "formatting, lint, types, import rules",
    "bench": "benchmarks side by side with other engines",
    "soak": "the long drills: kill, stop and restart daemons under load",
    "wheel": "build a wheel and try it in an empty environment",
}


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command in the tree; its failure is ours."""
    result = subprocess.run([str(word) for word in command], cwd=ROOT, env={**os.environ, **(env or {})}, check=False)
    if result.returncode:
        sys.exit(result.returncode)


def is_debian_root() -> bool:
    return shutil.which("apt-get") is not None and hasattr(os, "geteuid") and os.geteuid() == 0


def apt_install(packages: list[str]) -> None:
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "-qq", "update", env=env)
    run("apt-get", "-qq", "-y", "--no-install-recommends", "install", *packages, env=env)


def make_venv() -> None:
    """Make .venv; on Debian without python3-venv install that first (root) or say how."""
    if PYTHON.exists():
        return
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    package = f"python3.{sys.version_info.minor}-venv"
    if not is_debian_root():
        print(made.stdout + made.stderr, file=sys.stderr)
        sys.exit(f"error: Python cannot make a virtual environment here\n  fix:  install {package}, then run this again")
    apt_install([package])
    run(sys.executable, "-m", "venv", VENV)


def install(*extras: str) -> None:
    """Install the tree, editable, with these extras; skipped when nothing has changed since the last time."""
    make_venv()
    stamp = VENV / f".installed-{'-'.join(extras) or 'base'}"
    wanted = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    target = f".[{','.join(extras)}]" if extras else "."
    print("setting up .venv …", file=sys.stderr)
    run(PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", "constraints.txt", "-e", target)
    stamp.write_text(wanted)


def install_system_packages() -> None:
    missing = [name for name in SYSTEM_PACKAGES if not is_installed(name)]
    if not missing:
        return
    if is_debian_root():
        print(f"installing {', '.join(missing)} …", file=sys.stderr)
        apt_install(missing)
    else:
        print(f"note: tests that need {', '.join(missing)} will be skipped", file=sys.stderr)


def is_installed(package: str) -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    query = ["dpkg-query", "-W", "-f=${Status}", package]
    return "install ok installed" in subprocess.run(query, capture_output=True, text=True, check=False).stdout


def check() -> None:
    install("test", "check")
    run(PYTHON, "-m", "ruff", "format", "--check", ".")
    run(PYTHON, "-m", "ruff", "check", ".")
    run(PYTHON, "-m", "mypy")
    run(VENV / "bin" / "lint-imports")


def wheel() -> None:
    """Build a wheel and run it from an empty environment, outside the tree."""
    install("check")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    run(PYTHON, "-m", "pip", "wheel", "-q", "--no-deps", "-w", dist, ".")
    (built,) = dist.glob("*.whl")
    empty = ROOT / "build" / "wheel-venv"
    shutil.rmtree(empty, ignore_errors=True)
    run(sys.executable, "-m", "venv", empty)
    run(empty / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", "constraints.txt", built)
    run(empty / "bin" / "p2pc", "--version")
    run(empty / "bin" / "p2pc", "run", "--local", "echo {}", ":::", "from", "the", "wheel")


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(f"error: p2pcompute needs Python 3.11 or later, this is {sys.version.split()[0]}")
    verbs = "\n".join(f"  {name:6} {what}" for name, what in VERBS.items())
    parser = argparse.ArgumentParser(description=__doc__, epilog=verbs, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on to p2pc, pytest or the benchmark")
    arguments = parser.parse_args()
    match arguments.verb:
        case "setup":
            install("test", "check")
        case "demo":
            install()
            run(VENV / "bin" / "p2pc", "demo", *arguments.rest)
        case "test":
            install("test", "check")
            install_system_packages()
            run(PYTHON, "-m", "pytest", *arguments.rest)
        case "check":
            check()
        case "bench":
            install("bench")
            run(PYTHON, "benchmarks/peers.py", *arguments.rest)
        case "soak":
            install("test", "check")
            install_system_packages()
            run(PYTHON, "-m", "pytest", "-m", "drill", "-s", *arguments.rest, env={"P2PC_SOAK": "1"})
        case "wheel":
            wheel()


if __name__ == "__main__":
    main()
