"""Bug reports: everything that helps, nothing that tells who and where somebody is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.cli.bug_report import Redactor

P2PC = Path(sys.executable).with_name("p2pc")


def p2pc(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "P2PC_HOME": str(home / "p2pc"), "P2PC_NODE__INTERFACES": "lo",
        "P2PC_NODE__DISCOVER": "false", "P2PC_NODE__PEERS": "203.0.113.77:7878", "P2PC_NODE__NAME": "annas-desk",
    }  # fmt: skip
    return subprocess.run(
        [P2PC, *words], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )


def test_a_report_of_a_node_that_ran_a_job_helps_and_hides(tmp_path: Path) -> None:
    target = tmp_path / "report.zip"
    assert p2pc(tmp_path, "node", "start").returncode == 0
    try:
        assert p2pc(tmp_path, "run", "echo", "{}", ":::", "my-secret-input").returncode == 0
        public = json.loads(p2pc(tmp_path, "status", "--json").stdout)["node"]
        done = p2pc(tmp_path, "doctor", "--bundle", str(target))
        assert "node.log" in done.stderr and "look through it" in done.stderr, done.stderr
    finally:
        assert p2pc(tmp_path, "node", "stop", "--now").returncode == 0
    with zipfile.ZipFile(target) as bundle:
        texts = {name: bundle.read(name).decode() for name in bundle.namelist()}
    whole = "\n".join(texts.values())
    for secret in ("my-secret-input", "annas-desk", "203.0.113.77", public["id"], public["short_id"], str(tmp_path)):
        assert secret not in whole, secret
    assert json.loads(texts["jobs.json"])[0]["state"] == "done"
    assert json.loads(texts["status.json"])["node"]["name"] == "node-1"
    assert json.loads(texts["about.json"])["packages"]["cbor2"]
    assert json.loads(texts["settings.json"])["node.peers"]["value"] == "hidden (1)"
    assert len(texts["node.log"].splitlines()) >= 2
    again = p2pc(tmp_path, "doctor", "--bundle", str(target))
    assert again.returncode == 2 and "exists already" in again.stderr


def test_a_report_without_a_node_says_why(tmp_path: Path) -> None:
    target = tmp_path / "report.zip"
    report = json.loads(p2pc(tmp_path, "doctor", "--bundle", str(target), "--json").stdout)["report"]
    assert set(report["parts"]) >= {"about.json", "checks.json", "node.log"}
    with zipfile.ZipFile(target) as bundle:
        assert "no node is running" in json.loads(bundle.read("status.json"))["unavailable"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dial 10.0.0.7:7878 and 10.0.0.7:1", "dial address-1:7878 and address-1:1"),
        ("[2001:db8::7]:7878 [fe80::1]", "[address-1]:7878 [address-2]"),
        ("127.0.0.1 ::1 version 1.2.3 at 19:06:09.319", "127.0.0.1 ::1 version 1.2.3 at 19:06:09.319"),
        ("4HF4-7XTY is 4HF4-7XTY-54IP-HDII-UUKG", "id-1 is id-1"),
        ("key 92d4d636f87e9fe50b36b6927b8076fc0fcef9a2", "key key-1"),
        ("/home/anna/x by anna, not annabel", "~/x by this-user, not annabel"),
        ("2026-11-22T19:06:09.319709Z", "2026-11-22T19:06:09.319709Z"),
    ],
)
def test_what_is_replaced(text: str, expected: str) -> None:
    assert Redactor({"anna": "this-user", "/home/anna": "~"}).text(text) == expected


@given(st.ip_addresses(v=4).filter(lambda ip: not (ip.is_loopback or int(ip) >> 24 in (0, 255))))
def test_no_address_stays(address: object) -> None:
    assert str(address) not in Redactor({}).text(f"from {address}: lost; peers=['{address}:7']")
