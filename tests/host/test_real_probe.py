"""What a machine says of itself: true, bounded in time, and whatever hangs or breaks stays unknown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import sys
import time
import types
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.host import real_probe, real_probe_child
from p2pcompute.host.real_probe import RealProbe
from p2pcompute.resources.attributes import decode_attributes, encode_attributes


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on the PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def program(directory: Path, name: str, script: str) -> None:
    file = directory / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def package(directory: Path, name: str, code: str, entry: str = "probe") -> None:
    """Install a package with one plugin."""
    (directory / f"{name}.py").write_text(code)
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[p2pc.probes]\n{name} = {name}:{entry}\n")


def alone(directory: Path, **named: Any) -> RealProbe:
    """A probe that starts no process."""
    probe = RealProbe(directory, **named)
    probe.close()
    return probe


@contextlib.asynccontextmanager
async def probing(directory: Path, **named: Any) -> AsyncIterator[RealProbe]:
    probe = RealProbe(directory, **named)
    try:
        yield probe
    finally:
        probe.close()
        if probe._looking is not None:
            async with asyncio.timeout(10):
                await probe._looking


async def look_over(probe: RealProbe) -> None:
    """Wait until everything that can be found out is."""
    await probe.attributes()
    assert probe._looking is not None
    await probe._looking


def value(found: Any, name: str) -> Any:
    return found[name].value if name in found else None


async def test_the_probe_says_what_this_machine_is(tmp_path: Path) -> None:
    """A job is matched against a machine that is not this one."""
    async with probing(tmp_path, cgroup=tmp_path) as probe:
        await look_over(probe)
        found = await probe.attributes()
    assert value(found, "os") == sys.platform.rstrip("0123456789")
    assert value(found, "arch") == os.uname().machine
    assert "{}.{}".format(*sys.version_info) in value(found, "python")
    assert value(found, "cpus") >= 1 and value(found, "mem.total") > 2**20
    assert 0 < value(found, "mem.free") <= value(found, "mem.total")
    assert 0 < value(found, "disk.free") <= value(found, "disk.total")
    for name, attribute in found.items():
        assert (attribute.lifetime_s is None) == (name not in ("load", "mem.free", "disk.free", "battery", "portable"))
    decode_attributes(encode_attributes(found, found["load"].measured_s))
    gone = await alone(tmp_path / "gone").attributes()
    assert "disk.free" not in gone and "disk.total" not in gone


async def test_what_cannot_be_measured_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container without /proc, or a battery whose driver shows nonsense, ends the node's answer."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise OSError(name)

    monkeypatch.setattr(real_probe, "_psutil", Broken)
    found = await alone(tmp_path).attributes()
    assert {"os", "arch", "cpus", "load"} <= set(found) and not {
        "mem.free",
        "disk.free",
        "battery",
        "portable",
    } & set(found)


@pytest.mark.parametrize(("plugged", "expected"), [(True, False), (False, True), (None, None)])
async def test_batteries(
    plugged: bool | None, expected: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work goes to a laptop on the train."""

    class Psutil:
        @staticmethod
        def sensors_battery() -> Any:
            return types.SimpleNamespace(percent=50, power_plugged=plugged)

    monkeypatch.setattr(real_probe, "_psutil", Psutil)
    found = await alone(tmp_path).attributes()
    assert value(found, "battery") is expected and value(found, "portable") is True
    monkeypatch.setattr(Psutil, "sensors_battery", staticmethod(lambda: None))
    monkeypatch.setattr(real_probe, "_POWER_SUPPLIES", tmp_path)
    found = await alone(tmp_path).attributes()
    assert value(found, "battery") is False and value(found, "portable") is False


async def test_what_was_just_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is asked a hundred times a second measures a hundred times a second."""
    probe = alone(tmp_path)
    found = await asyncio.gather(*(probe.attributes() for _ in range(20)))
    assert len({attributes["load"].measured_s for attributes in found}) == 1
    monkeypatch.setattr(real_probe, "FRESH_S", 0.0)
    again = await probe.attributes()
    assert again["load"].measured_s > found[0]["load"].measured_s
    assert again["cpus"] is found[0]["cpus"]


async def test_the_limits_of_a_container_count(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    limited = await alone(tmp_path, cgroup=tmp_path).attributes()
    assert value(limited, "cpus") == 0.5 and value(limited, "mem.total") == 1048576
    assert value(limited, "mem.free") == 48576
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = await alone(tmp_path, cgroup=tmp_path).attributes()
    assert value(unlimited, "cpus") >= 1 and value(unlimited, "mem.total") > 1048576


async def test_executables_are_looked_for_when_asked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that needs an application goes where it is not, or a peer learns which files are here."""
    program(path, "frobnicate", "exit 0")
    tool = path / "frobnicate"
    tool.chmod(0o644)
    probe = RealProbe(path)
    assert await probe.has(["frobnicate", "sh", str(tool), "../frobnicate", ""]) == {
        "frobnicate": False, "sh": False, str(tool): False, "../frobnicate": False, "": False,
    }  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setattr(real_probe, "EXECUTABLE_S", 0.0)
    assert await probe.has(["frobnicate", str(tool)]) == {"frobnicate": True, str(tool): False}
    monkeypatch.setattr(real_probe, "EXECUTABLE_S", 60.0)
    monkeypatch.setattr(real_probe, "EXECUTABLES_MAX", 2)
    tool.unlink()
    assert await probe.has(["frobnicate"]) == {"frobnicate": True}, "it was found a moment ago"
    assert await probe.has(["a", "b", "c"]) == {"a": False, "b": False, "c": False}
    assert await probe.has(["frobnicate"]) == {"frobnicate": False}
    assert probe._looking is None, "no process is started for an executable"


async def test_a_question_starts_no_process_for_what_is_known_without(tmp_path: Path) -> None:
    """Every question about memory tries a container engine, and waits for it."""
    async with probing(tmp_path) as probe:
        assert "cpus" in await probe.attributes(["cpus", "mem.free", "label.zone", "name", "tag"])
        assert probe._looking is None
        for name in ("gpu.count", "site.rack"):
            await probe.attributes([name])
            assert probe._looking is not None


async def test_runtimes_are_tried(path: Path, tmp_path: Path) -> None:
    """A node says that it has a container engine whose daemon does not run, or whose command hangs."""
    program(path, "docker", "exit 1")
    program(path, "podman", "exit 0")
    program(path, "bwrap", "echo noise; kill -9 $$")
    program(path, "apptainer", "exec /bin/sleep 60")
    program(path, "python3.7", "exit 0")
    program(path, "python3.8", "exit 1")
    async with probing(tmp_path) as probe:
        first = await probe.has(["docker", "apptainer", "podman"])
        assert probe._looking is not None and not probe._looking.done(), "nobody waits for what hangs"
        assert "apptainer" not in first
        await probe._looking
        assert await probe.has(["docker", "podman", "bubblewrap", "wasm", "apptainer", "bwrap"]) == {
            "docker": False, "podman": True, "bubblewrap": False, "bwrap": True,
            "wasm": find_spec("wasmtime") is not None,
        }  # fmt: skip
        assert value(await probe.attributes(), "python") == ("3.7", "{}.{}".format(*sys.version_info))


async def test_a_runtime_that_comes_or_goes_is_seen(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody installs what a job needs, and his node says for ten minutes that it is not there."""
    monkeypatch.setattr("p2pcompute.host.real_probe.INSTALLED_S", 0.0)
    async with probing(tmp_path) as probe:
        assert (await probe.has(["podman"]))["podman"] is False
        assert probe._looking is not None
        await probe._looking
        program(path, "podman", "exit 0")
        assert (await probe.has(["podman"]))["podman"] is True
        await probe._looking
        (path / "podman").unlink()
        assert (await probe.has(["podman"]))["podman"] is False
        looked = probe._looking
        await looked
        await probe.has(["podman"])
        assert probe._looking is looked, "it is looked over once for each change"


async def test_what_hangs_is_killed_with_the_probe(path: Path, tmp_path: Path) -> None:
    """A node cannot stop, or leaves processes behind, because a container engine does not answer."""
    program(path, "docker", f"echo $$ > {tmp_path}/pid; exec /bin/sleep 600")
    async with probing(tmp_path) as probe:
        await probe.attributes()
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    pid = int((tmp_path / "pid").read_text())
    await until(lambda: not is_alive(pid))
    assert await probe.attributes(), "a closed probe still says what it knows"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def test_plugins(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """A package cannot tell what a machine has, or a broken one takes the node down or fills its log."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site))
    package(
        site,
        "rack",
        "def probe(): print('noise'); return {'site.rack': 'B7', 'gpu.count': (4, None), 'tools': ['a', 'b']}",
    )
    package(site, "licences", "def probe(): return {'licences.free': (3, 0.0)}")
    package(site, "dies", "import os\ndef probe(): raise SystemExit('no')")
    package(site, "nonsense", "def probe(): return {'Bad Name': 1}")
    package(site, "liar", "def probe(): return {'name': 'another', 'mem': 1, 'has': ['x'], 'cpus.fast': 3}")
    package(site, "wrong", "def probe(): return {'a': object()}")
    package(site, "absent", "", entry="nothing")
    async with probing(tmp_path) as probe:
        with caplog.at_level(logging.WARNING):
            await look_over(probe)
            found = await probe.attributes()
            assert value(found, "site.rack") == "B7" and found["site.rack"].lifetime_s == 60.0
            assert value(found, "gpu.count") == 4 and found["gpu.count"].lifetime_s is None
            assert value(found, "tools") == ("a", "b") and value(found, "licences.free") == 3
            assert not {"Bad Name", "name", "mem", "has", "cpus.fast", "a"} & set(found)
            assert value(found, "mem.total"), "the others go on"
            decode_attributes(encode_attributes(found, time.time()))
            monkeypatch.setattr(real_probe, "PLUGINS_S", 0.0)
            before = found["licences.free"].measured_s
            await look_over(probe)
            assert (await probe.attributes())["licences.free"].measured_s > before, (
                "its value is too old to be believed"
            )
    blamed = [record.args[0] for record in caplog.records if record.name == "p2pcompute.probe"]
    assert sorted(blamed) == ["absent", "dies", "liar", "nonsense", "wrong"], "each once"


async def test_plugins_cannot_make_a_node_mute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One package says so much, or such a time, that nothing of what the node says can be sent."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    package(
        tmp_path,
        "endless",
        "def probe(): return {'a': (1, float('inf')), 'b': (1, float('nan')), 'c': (1, -5), 'd': (1, 1e300)}",
    )
    async with probing(tmp_path) as probe:
        await look_over(probe)
        found = await probe.attributes()
    assert {"a", "b", "c", "d"} <= set(found)
    encode_attributes(found, time.time())
    package(
        tmp_path,
        "long",
        "def probe(): return {f'x.n{n}': ['\\u00e9' * 200 + str(w) for w in range(60)] for n in range(20)}",
    )
    package(tmp_path, "many", "def probe(): return {f'y.n{n}': n for n in range(1000)}")
    async with probing(tmp_path) as probe:
        await look_over(probe)
        found = await probe.attributes()
    assert len(found) < 150 and len(encode_attributes(found, time.time())) < 12 * 1024


async def test_a_plugin_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One package stops a node from answering."""
    package(tmp_path, "hangs", "import time\ndef probe(): time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(real_probe, "PROBE_S", 0.2)
    async with probing(tmp_path) as probe:
        await look_over(probe)
        assert probe._child is None and "mem.total" in await probe.attributes()


# --- the process that looks the machine over ------------------------------------------------------


def said(probe: Callable[[Any], None]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    real_probe_child._run(probe, found.append)
    return found


FAKE_NVML = """
class NVMLError(Exception): pass
def nvmlInit():
    if {fails}: raise NVMLError()
def nvmlDeviceGetCount(): return {count}
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(handle): return b"NVIDIA A100" if handle else "NVIDIA T4"
class Memory:
    def __init__(self, handle): self.total = (handle + 1) << 34
nvmlDeviceGetMemoryInfo = Memory
"""


@pytest.mark.parametrize(
    ("nvml", "expected"),
    [
        (FAKE_NVML.format(fails=False, count=2), {"gpu.count": 2, "gpu.mem": 2 << 34, "gpu.model": "NVIDIA A100"}),
        (FAKE_NVML.format(fails=False, count=0), {"gpu.count": 0}),
        (FAKE_NVML.format(fails=True, count=1), {"gpu.count": 0}),
        ("raise ImportError", {"gpu.count": 0}),
        ("raise RuntimeError", {}),
    ],
)
def test_gpus_of_the_driver(
    nvml: str, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs for GPUs go where there is none, or miss one."""
    (tmp_path / "pynvml.py").write_text(nvml)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setattr(real_probe_child, "_has_surely_no_gpu", lambda _devices: True)
    findings = said(real_probe_child.gpus)
    assert {finding["name"]: finding["value"] for finding in findings if "name" in finding} == expected
    troubles = [finding["trouble"] for finding in findings if "trouble" in finding]
    assert troubles == ([] if expected else ["RuntimeError: "]), "an error of the driver is told, not swallowed"
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)


def test_no_gpu_is_said_only_when_the_kernel_shows_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose GPU cannot be asked says that it has none."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(real_probe_child, "_GPU_FILES", ())
    surely_none = real_probe_child._has_surely_no_gpu
    assert not surely_none(tmp_path), "a kernel that lists nothing knows nothing"

    def device(name: str, kind: str, vendor: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "class").write_text(kind + "\n")
        (tmp_path / name / "vendor").write_text(vendor + "\n")

    device("0000:00:01.0", "0x020000", "0x10de")
    device("0000:00:02.0", "0x030000", "0x1234")
    assert surely_none(tmp_path), "a network card, and the display of a virtual machine"
    device("0000:00:03.0", "0x030200", "0x10de")
    assert not surely_none(tmp_path)
    assert not surely_none(tmp_path / "none")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not surely_none(tmp_path)
