"""`p2pc node`, `status`, `peers`, `invite`, `join`, `leave`, `config`, `version` with the real node."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from p2pcompute.cli import daemon_start, node_commands, watch_commands
from p2pcompute.cli.daemon_start import ensure_node, is_container, is_running, is_throwaway, running_pid, why_embedded
from p2pcompute.cli.main import run_command
from p2pcompute.errors import NodeUnavailable
from p2pcompute.places import find_paths
from tests.conftest import KEPT_CHILDREN

ROOT = Path(__file__).parents[2]


class Home:
    """One installation; commands run in this process."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.paths = find_paths({"P2PC_HOME": str(directory)})
        self.out = self.err = ""

    def use(self) -> None:
        self._monkeypatch.setenv("P2PC_HOME", str(self.directory))

    def p2pc(self, *words: str) -> int:
        self.use()
        code = run_command(words)
        self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *words: str) -> Any:
        assert self.p2pc(*words, "--json") == 0, self.err
        return json.loads(self.out)

    def kill(self) -> None:
        pid = running_pid(self.paths)
        if pid is not None and is_running(self.paths):
            os.kill(pid, signal.SIGKILL)


MakeHome = Callable[[str], Home]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[MakeHome]:
    for name in list(os.environ):
        if name.startswith("P2PC_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("P2PC_NODE__INTERFACES", "lo")
    made: list[Home] = []

    def make(name: str) -> Home:
        made.append(Home(tmp_path / name, monkeypatch, capsys))
        return made[-1]

    yield make
    for one in made:
        one.kill()
    # A command that starts a node ends soon after and leaves it to init; here the command is this process.
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            try:
                words = " ".join(child.cmdline())
            except psutil.ZombieProcess:
                words = ""
            if not any(kept in words for kept in KEPT_CHILDREN):
                child.wait(20)


def until(condition: Callable[[], object], limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_looking_never_starts_a_node(home: MakeHome) -> None:
    """A prompt or a monitor that calls `status` must not leave daemons on every machine."""
    one = home("one")
    for words in (("status",), ("peers",), ("leave", "-y"), ("node", "stop")):
        assert one.p2pc(*words) == 5, words
        assert "no node is running here" in one.err and not one.out
    assert one.p2pc("status", "--json") == 5
    assert json.loads(one.out)["code"] == "no-node" and not one.err
    assert one.p2pc("version") == 0 and "no node is running here" in one.out
    assert not one.directory.exists()


def test_life_of_a_node(home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """start, look, start again, other settings, restart, stop: each says what is so, with the exit code for it."""
    one = home("one")
    assert one.p2pc("node", "start", "--name", "nova") == 0, one.err
    assert one.err.startswith("nova is up, pid ") and not one.out
    status = one.json("status")
    assert status["node"]["name"] == "nova" and status["group"]["is_alone"]
    assert status["node"]["listening"] == "loopback", "a solo node opens no port to the network"
    assert one.p2pc("status") == 0
    assert one.out.splitlines()[0].startswith("nova is idle, alone: 0 of ")
    assert one.p2pc("peers") == 0 and "nova (this)" in one.out and status["node"]["short_id"] in one.out
    assert one.p2pc("peers", "nova") == 0 and status["node"]["id"] in one.out
    assert one.p2pc("peers", "novva") == 2 and 'did you mean "nova"?' in one.err
    assert one.p2pc("node", "start") == 0 and "running already" in one.err
    assert one.p2pc("node", "start", "--cpus", "1") == 2 and "p2pc node restart" in one.err
    assert one.p2pc("config", "set", "node.slots", "1") == 0 and "p2pc node restart" in one.err
    assert one.p2pc("version") == 0 and "they fit" in one.out
    assert one.p2pc("node", "restart") == 0, one.err
    again = one.json("status")
    assert again["slots"]["total"] == 1 and again["node"]["pid"] != status["node"]["pid"]
    assert again["node"]["id"] == status["node"]["id"] and again["node"]["port"] == status["node"]["port"]
    assert one.json("status")["node"]["name"] == "nova", "it is started as it was"
    assert one.p2pc("config", "set", "node.name", "vega") == 0
    assert one.p2pc("node", "restart", "--cpus", "2") == 0 and "node.name" not in one.err
    again = one.json("status")
    assert (again["node"]["name"], again["slots"]["total"]) == ("vega", 2), "what was said last holds"
    assert one.p2pc("leave", "-y") == 2 and "alone" in one.err
    assert one.p2pc("node", "restart", "--until", "20s") == 2 and "leave at once" in one.err
    monkeypatch.setenv("P2PC_NODE__INTERFACES", "zz9")
    assert one.p2pc("node", "restart") == 2 and "interfaces=NAME" in one.err
    monkeypatch.setenv("P2PC_NODE__INTERFACES", "lo")
    assert one.json("status")["node"]["pid"] == again["node"]["pid"], "it did not stop for settings that it refuses"
    assert one.p2pc("node", "stop") == 0 and not is_running(one.paths)
    assert one.p2pc("node", "start", "--until", "20s") == 2 and "leave at once" in one.err and "36 s" in one.err
    assert one.p2pc("status") == 5


def test_invite_and_join(home: MakeHome) -> None:
    """Two installations on one machine: the token on stdout, consent, membership, and leaving again."""
    nova, atlas = home("nova"), home("atlas")
    assert nova.p2pc("node", "start", "--name", "nova") == 0
    assert nova.p2pc("invite", "--token", "--expires", "soon") == 2 and "not a duration" in nova.err
    assert nova.p2pc("invite", "--token", "--expires", "5m") == 0
    token = nova.out.strip()
    assert "\n" not in token and "can run programs on this computer, in sandboxes" in nova.err
    assert atlas.p2pc("--no-input", "join", token) == 6 and "consent" in atlas.err
    assert not atlas.directory.exists(), "no node is started before the consent"
    assert atlas.p2pc("node", "start", "--name", "atlas") == 0
    assert atlas.p2pc("join", "--accept", "all", token[:-3]) == 2, "a cut token costs no guess"
    assert atlas.p2pc("join", "--accept", "none", "--name", "atlas2", token) == 0, atlas.err
    assert atlas.out == 'This computer is now "atlas2" in group home\n' and "Found nova" in atlas.err
    assert "starts anew" in atlas.err, "it would take work of others until it did"
    own = atlas.json("peers", "atlas2")["items"][0]["attributes"]
    assert own["accepts"]["value"] == "false", "what was agreed to holds from now on"
    assert atlas.p2pc("node", "restart") == 0 and atlas.json("status")["node"]["name"] == "atlas2"

    def nova_sees() -> list[str]:
        return [peer["name"] for peer in nova.json("status")["peers"] if peer["state"] == "up"]

    until(lambda: nova_sees() == ["atlas2"])
    until(lambda: "nova" in [peer["name"] for peer in atlas.json("peers")["items"]])
    assert atlas.p2pc("join", "--accept", "all", token) == 6 and "already" in atlas.err
    assert atlas.p2pc("--no-input", "leave") == 2
    assert atlas.p2pc("leave", "-y") == 0 and atlas.json("status")["group"]["is_alone"]


def test_foreground_node_ends_at_ctrl_c(home: MakeHome) -> None:
    """`p2pc node` in a terminal or a container: says that it is up, drains at the first Ctrl-C, exits 0."""
    one = home("one")
    one.use()
    with subprocess.Popen(
        [sys.executable, "-m", "p2pcompute.cli.main", "node", "--name", "nova"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        while " warning " in line:  # of what this machine cannot do
            line = process.stderr.readline()
        assert line.startswith("nova is up")
        assert one.p2pc("node") == 5 and "running already" in one.err
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=20)
    assert (process.returncode, out, errors) == (0, "", "")


def test_stuck_node_is_named_and_can_be_ended(home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP, a dead disk: `status` says so in bounded time, `stop --now` ends it."""
    one = home("one")
    assert one.p2pc("node", "start") == 0
    pid = running_pid(one.paths)
    assert pid is not None
    for module in (node_commands, watch_commands):
        monkeypatch.setattr(module, "STATUS_S_MAX", 0.3)
    os.kill(pid, signal.SIGSTOP)
    assert one.p2pc("status") == 5 and "does not answer" in one.err
    assert one.p2pc("node", "stop") == 5 and f"pid {pid}" in one.err and "p2pc node stop --now" in one.err
    assert one.p2pc("node", "stop", "--now") == 0 and not is_running(one.paths)


# --- starting a node on the way to something else -------------------------------------------------


def test_node_is_started_once_and_stays(home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a person's machine: one line says so; the next command finds it."""
    one = home("one")
    one.use()
    monkeypatch.setattr(daemon_start, "why_embedded", lambda _: None)
    monkeypatch.setattr(daemon_start, "AUTOSTART_S_MAX", 30.0)
    said: list[str] = []
    connection = ensure_node(announce=said.append)
    pid = connection.request("GET", "/v1/status")["node"]["pid"]
    assert said == [f"started a node for you (pid {pid}); stop it: p2pc node stop"]
    assert connection.embedded is None
    assert ensure_node(announce=said.append).request("GET", "/v1/status")["node"]["pid"] == pid
    assert len(said) == 1
    assert one.p2pc("node", "stop") == 0


def test_autostart_can_be_forbidden(home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 5 and the way out, in scripts that want no surprise."""
    one = home("one")
    monkeypatch.setenv("P2PC_NO_AUTOSTART", "1")
    assert one.p2pc("invite", "--token") == 5 and "P2PC_NO_AUTOSTART" in one.err
    assert not one.directory.exists()


def test_failed_start_shows_the_nodes_reason(home: MakeHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad setting, a file in the way: what, why, fix, as if the command had found it itself."""
    one = home("one")
    one.directory.mkdir()
    (one.directory / "config.toml").write_text("[node]\nslots = 0\n")
    assert one.p2pc("node", "start") == 2
    assert "node.slots" in one.err and "config.toml, line 2" in one.err
    (one.directory / "config.toml").unlink()
    monkeypatch.setenv("PYTHONPATH", str(one.directory))
    (one.directory / "starlette.py").write_text("raise SystemExit('broken installation')\n")
    assert one.p2pc("node", "start") == 5
    assert "broken installation" in one.err and "the node did not start" in one.err


@pytest.mark.parametrize("is_killed", [False, True])
def test_embedded_node_leaves_nothing_behind(home: MakeHome, is_killed: bool) -> None:
    """CI and containers: when the command ends, killed or not, no process is left and the home is free at once."""
    one = home("one")
    one.use()
    script = (
        "import sys, time\n"
        "from p2pcompute.cli import daemon_start\n"
        "daemon_start.AUTOSTART_S_MAX = 30\n"
        "connection = daemon_start.ensure_node(local=True)\n"
        "print(connection.embedded.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        pid = int(process.stdout.readline())
        assert one.json("status")["node"]["pid"] == pid
        if is_killed:
            process.kill()
            process.wait(10)
            until(lambda: not is_running(one.paths))
        else:
            process.stdin.close()
            assert process.wait(20) == 0
            assert not is_running(one.paths), "the command waits for its node"
    assert not one.paths.socket.exists()


def test_places_where_nothing_may_stay(tmp_path: Path) -> None:
    """Wrong here means a daemon left in somebody's CI, or none kept on somebody's laptop."""
    assert why_embedded({"CI": "true"}) == "CI"
    assert is_container({"container": "podman"}, tmp_path)
    assert not is_container({}, tmp_path)
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/cgroup").write_text("0::/init.scope\n")
    assert not is_container({}, tmp_path)
    (tmp_path / "proc/1/cgroup").write_text("0::/system.slice/docker-0a1b.scope\n")
    assert is_container({}, tmp_path)
    assert is_throwaway("/home/u/.cache/uv/archive-v0/abc", {})
    assert is_throwaway("/fast/cache/x", {"UV_CACHE_DIR": "/fast/cache"})
    assert is_throwaway("/home/u/.local/share/pipx/.cache/d41d8cd9", {})
    for kept in ("/home/u/.local/share/uv/tools/p2pcompute", "/home/u/.local/share/pipx/venvs/p2pcompute", "/usr"):
        assert not is_throwaway(kept, {}), kept


# --- words ----------------------------------------------------------------------------------------


def test_status_names_what_to_look_at() -> None:
    """The sentence first, then the nodes, then what needs attention; a foreign version has its mark."""
    peer = {
        "id": "",
        "short_id": "",
        "seen_s": None,
        "rate": None,
        "python": "",
        "invited_by": "",
        "trust": "member",
        "address": "",
    }
    document: dict[str, Any] = {
        "node": {"name": "nova", "state": "working", "version": "1.5.1"},
        "group": {"name": "home-lab", "is_alone": False},
        "slots": {"total": 8, "busy": 8},
        "peers": [
            {**peer, "name": "nova", "state": "self", "slots": 8, "busy": 8, "path": "self", "version": "1.5.1"},
            {**peer, "name": "pi4", "state": "up", "slots": 4, "busy": 1, "path": "LAN 4 ms", "version": "1.4.0"},
            {
                **peer,
                "name": "d\x1b[2J",
                "state": "not seen",
                "seen_s": 12.0,
                "slots": 4,
                "busy": 0,
                "path": "",
                "version": "",
            },
        ],
        "jobs": {"running": 1, "waiting": 0},
        "notes": ["the store takes nothing: disk full; make room"],
    }
    text = watch_commands.status_text(document, with_peers=True)
    lines = text.splitlines()
    assert lines[0] == "nova is working in group home-lab: 2 of 3 nodes up, 9 of 12 slots busy."
    assert "not seen for 12.0 s" in text and "1.4.0 !" in text
    assert "2 things to look at" in lines and "\x1b" not in text, "a peer's name must not move our cursor"
    assert lines[-1] == "Jobs: 1 running, 0 waiting"
    removed = {**document, "group": {**document["group"], "is_removed": True}, "peers": document["peers"][:1]}
    lines = watch_commands.status_text(removed, with_peers=True).splitlines()
    assert lines[0] == "nova is working, removed from group home-lab: it works for itself, 8 of 8 slots busy."


def test_config_commands(home: MakeHome) -> None:
    """One thing changes, its origin is shown, and a wrong key or value changes nothing."""
    one = home("one")
    assert one.p2pc("config", "set", "run.retries", "5") == 0
    assert one.p2pc("config", "get", "run.retries") == 0 and one.out == "5\n"
    assert one.p2pc("config", "set", "run.retrys", "5") == 2 and 'did you mean "run.retries"?' in one.err
    assert one.p2pc("config", "set", "run.retries", "many") == 2
    items = {item["key"]: item for item in one.json("config", "show")["items"]}
    assert items["run.retries"]["value"] == 5 and items["run.retries"]["origin"].endswith("config.toml")
    assert items["node.interfaces"]["origin"] == "$P2PC_NODE__INTERFACES"
    assert one.p2pc("config", "show") == 0 and "run.retries" in one.out
    assert one.p2pc("config", "unset", "run.retries") == 0
    assert one.json("config", "get", "run.retries") == {
        "schema": "p2pc.setting/1",
        "key": "run.retries",
        "value": 2,
        "origin": "default",
    }
    assert one.json("config", "path")["config"] == str(one.paths.config_file)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["policy=foo"], "round-robin"),
        (["until=2020-01-01T00:00"], "is past"),
        (["cpus=75%", "slots=1"], "set twice"),
        (["slots=0"], "number of slots"),
    ],
)
def test_what_a_node_would_not_start_with_is_not_set(home: MakeHome, words: list[str], why: str) -> None:
    """If it broke: the mistake is told by the next start, perhaps after a reboot that nobody watches."""
    one = home("one")
    assert one.p2pc("node", "set", *words) == 2 and why in one.err, one.err
    key, _, value = words[-1].partition("=")
    if len(words) == 1:
        assert one.p2pc("config", "set", f"node.{key}", value) == 2 and why in one.err
    assert one.json("config", "get", f"node.{key}")["origin"] == "default"


def test_status_imports_nothing_heavy(tmp_path: Path) -> None:
    """Budget: 150 ms of CPU.  Each of these would cost tens of milliseconds at every prompt."""
    script = (
        "import sys\n"
        "from p2pcompute.cli.main import run_command\n"
        "run_command(['status'])\n"
        "print(' '.join(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "P2PC_HOME": str(tmp_path)},
        text=True,
        capture_output=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {
        "asyncio",
        "rich",
        "msgspec",
        "cryptography",
        "nacl",
        "starlette",
        "uvicorn",
        "tomllib",
        "tomlkit",
        "cbor2",
        "psutil",
        "cloudpickle",
        "subprocess",
        "logging",
    }
    assert not loaded & heavy


def test_no_answer_is_an_error_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is not ready in time is ended, not left half started."""
    monkeypatch.setenv("P2PC_HOME", str(tmp_path))
    monkeypatch.setattr(daemon_start, "AUTOSTART_S_MAX", 0.01)
    with pytest.raises(NodeUnavailable) as caught:
        ensure_node(local=True)
    assert caught.value.code == "slow-start"
    until(lambda: not is_running(find_paths({"P2PC_HOME": str(tmp_path)})))
