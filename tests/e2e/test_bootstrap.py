"""The kit in bootstrap/: what a stranger copies from there works with this code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import dns.zone
import pytest

from p2pcompute.config import all_keys
from tests.e2e.mesh import PROGRAM, Mesh
from tests.e2e.test_joining import free_port
from tests.name_server import NameServer

ROOT = Path(__file__).resolve().parents[2]
KIT = ROOT / "bootstrap"
UNIT = KIT / "p2pc-contact.service"
ZONE = KIT / "mesh.example.org.zone"


def check(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(KIT / "check_seeds.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env}, timeout=60)


def load_zone(name_server: NameServer, *changes: tuple[str, str]) -> None:
    """Let the name server say what the example says, with other words in it."""
    text = ZONE.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    for name, node in dns.zone.from_text(text, check_origin=False, relativize=False).items():
        for records in node.rdatasets:
            key = (name.to_text(omit_final_dot=True), records.rdtype.name)
            name_server.zone[key] = [record.to_text() for record in records]


def test_a_contact_with_these_settings_is_found_by_the_example_zone(mesh: Mesh) -> None:
    """The whole way of the README: settings, zone, setting of the members, check."""
    port = free_port()
    (mesh.directory / "contact.toml").write_text((KIT / "config.toml").read_text().replace("7878", str(port)))
    contact = mesh.add("contact", P2PC_CONFIG=str(mesh.directory / "contact.toml"))
    contact.env.pop("P2PC_NODE__ACCEPT", None)  # the kit says it
    contact.start()
    bob = mesh.add("bob").start()
    mesh.join(contact, [bob])
    shown = {key["key"]: key["value"] for key in contact.p2pc("config", "show", "--json").check().json()["items"]}
    assert shown["node.port"] == port and shown["node.accept"] == "none" and shown["node.discover"] is False
    for daemon in (bob, contact):
        daemon.stop()
        shutil.rmtree(daemon.home / "store")  # and with it all contacts
    contact.start()
    with NameServer() as name_server:
        # Addresses of this machine, from a name that the public DNS does not have.
        hint = contact.get("/v1/status")["group"]["hint"]
        changes = [
            ("example.org.\n", "example.test.\n"),
            ("7878", str(port)),
            ("6f1c09aa", hint),
            ("2001:db8::10", "::1"),
        ]
        load_zone(name_server, *changes, ("203.0.113.10", "127.0.0.1"), ("198.51.100.7", "127.0.0.1"))
        setting = check("--setting", KIT / "seeds.txt").stdout.strip().split(",")[0].replace("org", "test")
        bob.p2pc("config", "set", "node.seeds", setting).check()
        bob.start("node.discover=false", f"node.dns={name_server.address}")
        mesh.meet([contact, bob])
        status = bob.get("/v1/status")
        assert status["seeds"][0]["seed"] == setting and f"127.0.0.1:{port}" in status["seeds"][0]["addresses"]
        assert not status["seeds"][0]["trouble"] and status["notes"] == []
        assert name_server.asked[f"_p2pcompute._udp.{setting}", "SRV"] == 1
        ran = bob.p2pc("run", "echo $P2PC_NODE", ":::", *map(str, range(20))).check()
        assert {line.split()[0] for line in ran.lines} == {"bob"}, "a contact runs nobody's tasks"
        seeds = mesh.directory / "seeds.txt"
        seeds.write_text(f"{setting}  # the mesh\n127.0.0.1:{port}\n")
        good = check("--ping", "--dns", name_server.address, seeds, P2PC_HOME=str(bob.home))
        assert good.returncode == 0 and good.stdout.count(f"127.0.0.1:{port}  contact") == 2, (good.stdout, good.stderr)
        assert len(contact.get("/v1/status")["peers"]) == 2, "a check is no member of the table"
        contact.stop()
        seeds.write_text(f"127.0.0.1:{port}\n")
        silent = check("--ping", "--dns", name_server.address, seeds, P2PC_HOME=str(bob.home))
        assert silent.returncode == 1 and "does not answer" in silent.stdout


def test_the_seeds_file_is_well_formed_and_wrong_lines_are_named(tmp_path: Path) -> None:
    assert check(KIT / "seeds.txt").returncode == 0
    file = tmp_path / "seeds.txt"
    for text, words in (
        ("mesh.example.org\n\nnova\n", ("line 3", "nova", "HOST:PORT")),
        ("mesh.example.org\nMESH.example.org.\n", ("line 2", "twice")),
        ("# none\n", ("0 seeds",)),
        ("".join(f"s{number}.example.org\n" for number in range(9)), ("9 seeds", "8")),
    ):
        file.write_text(text)
        wrong = check(file)
        assert wrong.returncode == 2 and all(word in wrong.stderr for word in words), wrong.stderr
    assert check(tmp_path / "none.txt").returncode == 2
    file.write_text("mesh.example.org\n")
    assert "no group" in check("--ping", file, P2PC_HOME=str(tmp_path)).stderr


def test_a_check_says_what_is_wrong_with_a_domain(tmp_path: Path) -> None:
    """The example as it stands has addresses that exist for documentation only."""
    file = tmp_path / "seeds.txt"
    file.write_text("mesh.example.org\n")
    with NameServer() as name_server:
        load_zone(name_server)
        done = check("--ask", "--dns", name_server.address, file)
        assert done.returncode == 1 and "3 × private address from a public name" in done.stdout, done.stdout
        load_zone(name_server, ("203.0.113.10", "8.8.8.8"))
        done = check("--ask", "--dns", name_server.address, file)
        assert done.returncode == 0 and "8.8.8.8:7878" in done.stdout, done.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="runs where systemd is installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/p2pc/bin/p2pc", PROGRAM))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert not ours and done.returncode == 0, done.stderr


def test_the_containerfile_copies_what_is_there_and_agrees_with_the_unit() -> None:
    """No test builds it: what is checked is that each instruction is one, and that what it names exists."""
    text = re.sub(r"\\\n", " ", (KIT / "Containerfile").read_text())
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    known = {"FROM", "COPY", "RUN", "VOLUME", "ENV", "EXPOSE", "USER", "WORKDIR", "STOPSIGNAL", "CMD"}
    assert lines[0][0] == "FROM" and {words[0] for words in lines} <= known
    for word, rest in lines:
        if word == "COPY":
            *sources, _ = rest.split()
            assert sources and all((ROOT / source).exists() for source in sources), rest
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*hatch["packages"], *hatch["force-include"]]
    copied = " ".join(rest for word, rest in lines if word == "COPY").split()
    assert all(path in copied for path in needed), "the wheel is built from these"
    for setting in re.findall(r"^Environment=(\S+)", UNIT.read_text(), re.MULTILINE):
        assert setting in text, setting


def test_what_the_readme_names_exists() -> None:
    text = (KIT / "README.md").read_text()
    files = {path.name for path in KIT.iterdir() if path.is_file() and path.name != "README.md"}
    assert all(f"]({name})" in text for name in files), "each file of the kit is explained"
    for name in re.findall(r"\]\(([^)#:]+)", text):
        assert (KIT / name).exists(), name
    settings = set(re.findall(r"`(node\.[a-z_]+)`", text))
    assert settings and settings <= set(all_keys())
