"""What part of a machine each of its groups has for the work of others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from p2pcompute.daemon.shares import WEIGHT_FILE, share_of
from p2pcompute.errors import ConfigError
from p2pcompute.places import DEFAULT_FILE, FIRST_GROUP, default_group, find_paths, groups_here


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("P2PC_HOME", str(tmp_path))
    monkeypatch.delenv("P2PC_GROUP", raising=False)
    monkeypatch.delenv("P2PC_CONFIG", raising=False)
    monkeypatch.delenv("P2PC_SOCKET", raising=False)
    for name in ("lab", "club"):
        (tmp_path / "groups" / name).mkdir(parents=True)
    return tmp_path


def runs(name: str, pid: int = os.getpid()) -> None:
    find_paths(group=name).run_file.write_text(json.dumps({"pid": pid}))


def test_who_runs_alone_has_all(home: Path) -> None:
    assert share_of(find_paths(), 1.0) == 1.0
    runs("lab", 2**22 + 1)
    assert share_of(find_paths(), 1.0) == 1.0, "a node that is gone counts nothing"


def test_those_that_run_share_by_weight(home: Path) -> None:
    runs("lab")
    assert share_of(find_paths(), 1.0) == 0.5
    assert share_of(find_paths(group="lab"), 3.0) == 1.0, "the first one does not run"
    runs(FIRST_GROUP)
    assert (share_of(find_paths(), 1.0), share_of(find_paths(group="lab"), 3.0)) == (0.25, 0.75)
    assert share_of(find_paths(), 0.0) == 0.0
    (find_paths(group="lab").state / WEIGHT_FILE).write_text("junk")
    assert share_of(find_paths(), 1.0) == 0.5


def test_each_group_has_its_places_and_all_have_one_key(home: Path) -> None:
    first, lab = find_paths(), find_paths(group="lab")
    assert groups_here(home) == [FIRST_GROUP, "club", "lab"]
    assert first.base == lab.base == home == first.data and lab.data == home / "groups" / "lab"
    assert len({first.socket, lab.socket}) == len({first.store, lab.store}) == len({first.lock, lab.lock}) == 2
    assert lab.system_configs[-1] == first.config_file and lab.config_file == lab.data / "config.toml"


def test_the_default_is_what_was_chosen_as_long_as_it_is_there(home: Path) -> None:
    assert find_paths().group == FIRST_GROUP
    (home / DEFAULT_FILE).write_text("lab\n")
    assert find_paths().group == "lab" and find_paths({"P2PC_HOME": str(home), "P2PC_GROUP": "club"}).group == "club"
    for gone in ("nowhere\n", "../..\n", "\0\n"):
        (home / DEFAULT_FILE).write_text(gone)
        assert default_group(home) == FIRST_GROUP


@pytest.mark.parametrize("name", ["../x", "", "Ä", "-a", "a" * 33, "a/b", "HOME"])
def test_names_that_lead_elsewhere_are_refused(home: Path, name: str) -> None:
    if name:
        with pytest.raises(ConfigError, match="cannot name a group"):
            find_paths(group=name)
    with pytest.raises(ConfigError, match="no group other"):
        find_paths(group="other")
