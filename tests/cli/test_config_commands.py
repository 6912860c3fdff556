"""Settings files by hand: `p2pc config edit` and `schema`, in real processes with a real editor command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from p2pcompute.config import all_keys, convert, read_file, schema_of_file, split_key

P2PC = Path(sys.executable).with_name("p2pc")


def p2pc(home: Path, *words: str, editor: str = "true") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "P2PC_HOME": str(home / "p2pc"), "EDITOR": editor}
    return subprocess.run(
        [P2PC, *words], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )


def test_what_is_written_in_the_editor_holds(tmp_path: Path) -> None:
    done = p2pc(tmp_path, "config", "edit", editor="sed -i 's/^# retries = .*/retries = 7/'")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    shown = p2pc(tmp_path, "config", "get", "run.retries", "--json")
    assert json.loads(shown.stdout)["value"] == 7
    file = Path(json.loads(p2pc(tmp_path, "config", "path", "--json").stdout)["config"])
    assert "# Extra attempts" in file.read_text(), "the rest of the text stays"
    assert [one.name for one in file.parent.glob("*draft*")] == []


def test_nothing_is_made_of_a_look(tmp_path: Path) -> None:
    done = p2pc(tmp_path, "config", "edit", "--json", editor="true")
    edited = json.loads(done.stdout)
    assert done.returncode == 0 and not edited["changed"] and not Path(edited["path"]).exists()


def test_a_mistake_changes_nothing_and_is_kept(tmp_path: Path) -> None:
    assert p2pc(tmp_path, "config", "set", "run.retries", "1").returncode == 0
    done = p2pc(tmp_path, "config", "edit", editor="sed -i 's/^retries = .*/retries = -1/'")
    assert done.returncode == 2 and "may not be negative" in done.stderr and "line 2" in done.stderr
    assert p2pc(tmp_path, "config", "get", "run.retries").stdout == "1\n"
    again = p2pc(tmp_path, "config", "edit", editor="sed -i 's/-1/4/'")
    assert again.returncode == 0, again.stderr
    assert p2pc(tmp_path, "config", "get", "run.retries").stdout == "4\n"


def test_what_only_the_node_can_judge_is_judged_too(tmp_path: Path) -> None:
    done = p2pc(tmp_path, "config", "edit", editor="sed -i 's/^# accept_if = .*/accept_if = \"job.cpus <\"/'")
    assert done.returncode == 2 and "draft" in done.stderr


def test_an_editor_that_is_missing_or_fails_is_named(tmp_path: Path) -> None:
    for editor in ("false", "no-such-editor"):
        done = p2pc(tmp_path, "config", "edit", editor=editor)
        assert done.returncode == 2 and "error" in done.stderr and "EDITOR" in done.stderr


def test_the_schema_says_what_the_reader_takes(tmp_path: Path) -> None:
    done = p2pc(tmp_path, "config", "schema")
    schema: dict[str, Any] = json.loads(done.stdout)
    assert schema == schema_of_file()
    for key in all_keys():
        section, name = split_key(key)
        about = schema["properties"][section]["properties"][name]
        assert about["description"]
        kinds = about["type"] if isinstance(about["type"], list) else [about["type"]]
        value = about["default"]
        assert {"boolean": bool, "integer": int, "number": float, "string": str, "array": list}[kinds[0]] is type(value)
        if value not in ("", []):
            assert convert(key, value) == (tuple(value) if isinstance(value, list) else value)
        for choice in about.get("enum", ()):
            assert convert(key, choice) == choice


def test_the_first_draft_is_valid_with_every_comment_taken_away(tmp_path: Path) -> None:
    """Each line that it offers is one that the reader takes, but for those that are empty."""
    p2pc(tmp_path, "config", "edit", editor=r"sed -i -E '/^# [a-z_]+ = (\"\"|\[\])$/d; s/^# ([a-z_]+ = )/\1/'")
    file = Path(json.loads(p2pc(tmp_path, "config", "path", "--json").stdout)["config"])
    assert len(tomllib.loads(file.read_text())["node"]) >= 10
    assert read_file(file)["run.retries"] == 2


@pytest.mark.parametrize("word", ["edit", "schema"])
def test_help_has_an_example(word: str, tmp_path: Path) -> None:
    assert f"p2pc config {word}" in p2pc(tmp_path, "config", word, "--help").stdout
