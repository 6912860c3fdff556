"""Two machines on one network: network namespaces joined by cables (veth)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

LAN = ("10.97.1.1", "10.97.1.2")
OTHER = ("10.98.1.1", "10.98.1.2")
"""A second cable between the same machines, which the nodes may not use."""


def why_not() -> str:
    """Return why namespaces cannot be made here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command ip (iproute2) is not installed"
    name = f"p2pc-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return f"network namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else ""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@contextlib.contextmanager
def two_machines(prefix: str) -> Iterator[tuple[str, str]]:
    """Namespaces with lan0 and other0 in each, while the context lasts.  Returns their names.

    These are this process's: tests may run side by side.
    """
    names = (f"{prefix}-{os.getpid()}-a", f"{prefix}-{os.getpid()}-b")
    try:
        for name in names:
            ip("netns", "add", name)
        for cable, addresses in (("lan0", LAN), ("other0", OTHER)):
            ip("link", "add", cable, "netns", names[0], "type", "veth", "peer", "name", cable, "netns", names[1])
            for name, address in zip(names, addresses, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
                plug(name, cable)
        for name in names:
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def plug(name: str, cable: str) -> None:
    ip("-n", name, "link", "set", cable, "up")
    if cable == "lan0":
        ip("-n", name, "route", "add", "default", "dev", cable)


def unplug(name: str, cable: str) -> None:
    ip("-n", name, "link", "set", cable, "down")
