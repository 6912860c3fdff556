"""A short-lived process that looks for what may hang, crash or take memory: GPU drivers, container engines, other
interpreters, plugins.

    python -m p2pcompute.host.real_probe_child 4.0 machine plugins

Each finding is a line of JSON on stdout, as soon as it is there; what has not ended after so many seconds is never
said, and so unknown.  Findings: ``{"name", "value", "lifetime_s", "by"}`` (`by`: the plugin, or empty),
``{"has", "is_there"}``, and ``{"trouble", "by"}`` for a plugin that failed.

A runtime "is there" when it has done something: a container engine has answered as this user, bubblewrap has started a
program in new namespaces.  What is not installed is not there; what does not answer in time is unknown.

The number of GPUs is that of the NVIDIA driver, asked through the package nvidia-ml-py where that is installed.
Without it, zero is said only where the kernel lists the devices of its buses and none of them can be one; a GPU that is
there and cannot be asked (another vendor's, or no package) leaves the number unknown: it may be of no use to anybody.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from p2pcompute.host.container_engines import TRIALS

TRY_S: Final = 3.0
"""Time for one program that is tried; all are tried side by side."""
PLUGIN_GROUP: Final = "p2pc.probes"
PLUGIN_LIFETIME_S: Final = 60.0
"""How long a plugin's value may be believed that does not say so."""
INTERPRETERS_MAX: Final = 32
_PYTHON: Final = re.compile(r"python3\.[0-9]{1,2}")
_GPU_VENDORS: Final = ("0x10de", "0x1002", "0x8086")
"""NVIDIA, AMD, Intel; the display of a virtual machine is made by others."""
_GPU_CLASSES: Final = ("0x03", "0x12")
"""PCI classes of display controllers and of processing accelerators."""
_GPU_FILES: Final = ("/dev/dxg", "/dev/nvidia0", "/dev/nvidiactl", "/dev/nvhost-ctrl", "/dev/kfd")
"""GPUs that are on no PCI bus, or behind a virtual one."""

Say = Callable[[Mapping[str, Any]], None]


def main(time_s: float, groups: Sequence[str]) -> None:
    """Run groups of probes for so long at most, and end the process."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)  # what a library or plugin prints is no finding
    lock = threading.Lock()

    def say(finding: Mapping[str, Any]) -> None:
        with lock:
            os.write(private, json.dumps(finding).encode() + b"\n")

    probes: list[Callable[[Say], None]] = []
    if "machine" in groups:
        probes += [gpus, interpreters, *(_trial(name, works) for name, works in RUNTIME_TRIALS.items())]
    if "plugins" in groups:
        probes += plugins(say)
    threads = [threading.Thread(target=_run, args=(probe, say), daemon=True) for probe in probes]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + time_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    os._exit(0)  # whatever hangs ends here


def _run(probe: Callable[[Say], None], say: Say) -> None:
    try:
        probe(say)
    except Exception as error:  # noqa: BLE001 - what cannot be found out is unknown, and the node's log says why
        say({"trouble": f"{type(error).__name__}: {error}"[:200], "by": "of this machine"})


def _value(name: str, value: Any) -> dict[str, Any]:
    return {"name": name, "value": value, "lifetime_s": None, "by": ""}


# --- runtimes -------------------------------------------------------------------------------------


def _trial(name: str, works: Callable[[], bool]) -> Callable[[Say], None]:
    def probe(say: Say) -> None:
        say({"has": name, "is_there": works()})

    return probe


def _succeeds(*words: str) -> bool:
    """Whether a program is there and ends well.

    Raises:
        subprocess.TimeoutExpired: it does not end.
    """
    if shutil.which(words[0]) is None:
        return False
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=TRY_S,
        check=False,
    )
    return done.returncode == 0


def _beside(name: str) -> Path:
    """Return where a program of this Python's own environment would be."""
    return Path(sys.executable).with_name(name)


def _wasm_works() -> bool:
    try:
        import wasmtime

        wasmtime.Engine()
    except (ImportError, OSError, RuntimeError):  # no package, or none for this machine
        return False
    return True


RUNTIME_TRIALS: Final[Mapping[str, Callable[[], bool]]] = {
    "apptainer": lambda: _succeeds(*TRIALS["apptainer"]),
    "bubblewrap": lambda: _succeeds("bwrap", "--ro-bind", "/", "/", "--unshare-all", "--", "/bin/sh", "-c", ":"),
    "docker": lambda: _succeeds(*TRIALS["docker"]),
    "podman": lambda: _succeeds(*TRIALS["podman"]),
    "uv": lambda: _succeeds(str(_beside("uv")) if _beside("uv").exists() else "uv", "--version"),
    "wasm": _wasm_works,
}


# --- interpreters ---------------------------------------------------------------------------------


def interpreters(say: Say) -> None:
    """Say which Python minors can be started, this one included: a name on the PATH may lead nowhere (pyenv)."""
    names: dict[str, None] = {}
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        with contextlib.suppress(OSError):
            names.update(dict.fromkeys(name for name in os.listdir(directory) if _PYTHON.fullmatch(name)))
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = {own: None}

    def attempt(name: str) -> None:
        minor = name.removeprefix("python3.")
        code = f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if _succeeds(name, "-I", "-S", "-c", code):
                found[f"3.{minor}"] = None

    others = [name for name in sorted(names) if name != f"python{own}"]
    threads = [threading.Thread(target=attempt, args=(name,), daemon=True) for name in others[:INTERPRETERS_MAX]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(_value("python", sorted(found, key=lambda text: int(text.partition(".")[2]))))


# --- GPUs -----------------------------------------------------------------------------------------


def gpus(say: Say) -> None:
    """Say how many GPUs there are, and the memory and the model of the one with most memory."""
    found = _nvidia()
    if found is not None:
        say(_value("gpu.count", len(found)))
        if found:
            memory, model = max(found)
            say(_value("gpu.mem", memory))
            say(_value("gpu.model", model))
    elif _has_surely_no_gpu(Path("/sys/bus/pci/devices")):
        say(_value("gpu.count", 0))


def _nvidia() -> list[tuple[int, str]] | None:
    """Return (bytes of memory, model) of each GPU; None when the driver cannot be asked."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(handle)
        model = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        found.append((int(pynvml.nvmlDeviceGetMemoryInfo(handle).total), model))
    return found


def _has_surely_no_gpu(devices: Path) -> bool:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "i686"):
        return False  # elsewhere GPUs are part of the chip, on no bus that lists them
    if any(os.path.exists(path) for path in _GPU_FILES):
        return False
    try:
        found = [
            ((path / "class").read_text().strip(), (path / "vendor").read_text().strip()) for path in devices.iterdir()
        ]
    except OSError:
        return False
    return bool(found) and not any(kind.startswith(_GPU_CLASSES) and vendor in _GPU_VENDORS for kind, vendor in found)


# --- plugins --------------------------------------------------------------------------------------


def plugins(say: Say) -> list[Callable[[Say], None]]:
    """Return the probes of installed packages: entry points of the group "p2pc.probes".

    Each is a function without arguments that returns values by name: text, a number, true or false, a list of words,
    or a pair of such a value and how many seconds it may be believed (None: for good).
    """
    from importlib.metadata import entry_points

    found = sorted(entry_points(group=PLUGIN_GROUP), key=lambda entry: entry.name)
    return [_plugin(entry) for entry in found]


def _plugin(entry: Any) -> Callable[[Say], None]:
    def probe(say: Say) -> None:
        try:
            for name, value in entry.load()().items():
                lifetime_s: float | None = PLUGIN_LIFETIME_S
                if isinstance(value, tuple) and len(value) == 2 and not isinstance(value[1], str):
                    value, lifetime_s = value
                say({"name": name, "value": value, "lifetime_s": lifetime_s, "by": entry.name})
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything, SystemExit too
            say({"trouble": f"{type(error).__name__}: {error}"[:200], "by": entry.name})

    return probe


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
