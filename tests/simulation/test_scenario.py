"""Scenario files: what is wrong in one is said with its line and what is allowed instead."""

from __future__ import annotations

import os
import pickle
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import UsageError
from p2pcompute.simulation.scenario import (
    EXPERIMENTS,
    FILE_BYTES_MAX,
    Scenario,
    _lines_of,
    list_scenarios,
    load_scenario,
    scenario_files,
    split_values,
    value_at,
    with_values,
)
from tests.simulation import tiny

HEAD = 'question = "Does it?"\nexperiment = "tiny"\n'


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def load(folder: Path, text: str = "") -> Scenario:
    return load_scenario(write(folder, HEAD + text))


@pytest.mark.parametrize("name", list(scenario_files()))
def test_every_scenario_that_comes_along_is_valid(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.question.endswith("?") or "?" in scenario.question
    assert scenario_files()[name].read_text().startswith("question = ")  # the first line
    assert scenario.experiment in EXPERIMENTS
    for short in scenario.keys:
        value_at(scenario, short)


def test_the_scenario_for_a_first_look_is_listed_with_its_question() -> None:
    assert "join" in list_scenarios()["smoke"]


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("nodez = 3", "line 3", ['"nodez"', 'did you mean "nodes"?', "allowed: nodes, hours"]),
        ("nodes = 0", "line 3", ["nodes cannot be 0", "a whole number from 1 to 1000", "how many nodes"]),
        ("nodes = '3'", "line 3", ['nodes cannot be "3"', "a whole number"]),
        ("nodes = 3.5", "line 3", ["nodes cannot be 3.5"]),
        ("nodes = 13", "", ["impossible", "13 nodes bring bad luck"]),
        ("hours = inf", "line 3", ["hours cannot be inf", "a finite number"]),
        ("loss = nan", "line 3", ["loss cannot be nan"]),
        ("loss = 1", "line 3", ["loss cannot be 1", "a number from 0 below 1: share of packets lost"]),
        ("mode = 'fin'", "line 3", ['mode cannot be "fin"', "one of die, fail, fine, raise"]),
        ("workload = 3", "line 3", ["workload cannot be 3", "a list"]),
        ("loss = 1e400", "line 3", ["loss cannot be inf", "a finite number from 0 below 1"]),
        ("span = [1.0]", "line 3", ["span cannot be [1.0]", "two numbers, as 0.5,0.01 (in a file", "[0.5, 0.01]"]),
        ("span = [1.0, 'x']", "line 3", ["span.1 cannot be", "a number"]),
        ("[[workload]]\nkind = 'bag'\n\n[[workload]]\ntasks = 0", "line 7", ["workload.1.tasks cannot be 0"]),
        ("[[workload]]\nkind = 'bag'\n[[workload]]\nkinds = 1", "line 6", ['"kinds" in [workload.1]', "kind, tasks"]),
        ("[faults]\nonly = [\n  1,\n  'x',\n]", "line 4", ["faults.only.1 cannot be", "a whole number"]),
        ("faults.only = 1", "line 3", ["faults.only cannot be 1"]),
        ("faults = {only = [], onli = []}", "line 3", ['"onli" in [faults]', 'did you mean "only"?']),
        ("[keys]\nl = 'losss'", "line 4", ['"losss"', 'did you mean "loss"?']),
        ("[keys]\nl = 3", "line 4", ["keys.l cannot be 3"]),
        ("keys = 3", "line 3", ["keys is not a table"]),
        ("[keys]\nnodes = 'loss'", "line 4", ["keys.nodes cannot stand for 'loss'", "a key of its own"]),
    ],
)
def test_what_is_wrong_is_said_with_line_and_what_is_allowed(
    text: str, where: str, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert caught.value.code == "scenario"
    assert str(tmp_path / "mine.toml") in caught.value.what and where in caught.value.what
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodes = = 3", ["not TOML", "line 1"]),
        ("nodes = 3\nhours = 1\nnodes = 4", ["not TOML", "the key nodes is given twice"]),
        ("a.b = 3\na.b = [\n  4,\n]\nc = 1", ["not TOML", "the key a.b is given twice", "line 4,"]),
        ("experiment = 'tiny'", ["there is no question"]),
        ("question = 'Q?'", ["there is no experiment", "mesh", "tiny"]),
        ("question = 'Q?'\nexperiment = 'mash'", ["line 2", "mash", "mesh"]),
        ("question = 3\nexperiment = 'tiny'", ["line 1", "question"]),
        ("#" + "x" * FILE_BYTES_MAX, ["more than"]),
        ("question = " + "[" * 5000, ["not TOML", "nested too deeply"]),
        ("question = " + "[" * 5000 + "]" * 5000, ["not TOML", "nested too deeply"]),
        ("[" + ".".join("a" * 3000) + "]", ["not TOML", "nested too deeply"]),
        ("x" + ".a" * 3000 + " = 1", ["not TOML", "nested too deeply"]),
        ("nodes = " + "9" * 5000, ["not TOML", "digits"]),
    ],
)
def test_a_file_that_is_no_scenario_is_refused(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_scenario(write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[[workload]]\nkind = 'bag'\nwanted = 3", 5, "`wanted` means nothing for kind 'bag', only for queries"),
        ("[[workload]]\nwork_alpha = 1.5", 4, "`work_alpha` means nothing for works 'fixed', only for pareto"),
        ("[population]\nsessions = 'custom'\nup = [0.5, -0.01]\ndown = [0.5, 1]", 5, "`up` cannot be [0.5, -0.01]"),
        ("[population]\nsessions = 'kad'\nfamily = 'lognormal'", 5, "there is no lognormal fit of 'kad'"),
    ],
)
def test_a_wrong_value_of_a_mesh_is_found_on_its_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"question = 'Q?'\nexperiment = 'mesh'\n{text}")
    with pytest.raises(UsageError, match=f"line {line}: ") as caught:
        load_scenario(path)
    assert words in str(caught.value)


def test_what_is_set_without_effect_is_refused_even_if_it_is_the_default(tmp_path: Path) -> None:
    mesh = load_scenario(write(tmp_path, "question = 'Q?'\nexperiment = 'mesh'\n[[workload]]\nkind = 'bag'"))
    with pytest.raises(UsageError, match=r"--set workload\.0\.wanted=3: .*impossible"):
        with_values(mesh, {"workload.0.wanted": "3"})
    again = with_values(mesh, {"workload.0.kind": "queries", "workload.0.wanted": "3"})
    assert value_at(again, "workload.0.wanted") == 3


def test_a_trace_that_is_missing_is_named_with_its_line(tmp_path: Path) -> None:
    text = "question = 'Q?'\nexperiment = 'mesh'\n[population]\ntrace = 'missing.avt'"
    scenario = load_scenario(write(tmp_path, text))
    with pytest.raises(UsageError, match=r"mine\.toml, line 4: .*missing\.avt: the trace cannot be read"):
        scenario.check_files()


def test_a_list_of_two_is_written_with_a_comma(tmp_path: Path) -> None:
    tiny_one = load(tmp_path, "")
    assert value_at(with_values(tiny_one, {"span": "0.5,0.01"}), "span") == (0.5, 0.01)
    assert value_at(with_values(tiny_one, {"span": "none"}), "span") is None
    for wrong in ("0.5", "0.5,0.01,3"):
        with pytest.raises(UsageError, match=r"--set span=.* two numbers, as 0\.5,0\.01"):
            with_values(tiny_one, {"span": wrong})


def test_a_scenario_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'did you mean "smoke"\?'):
        load_scenario("smokee")
    with pytest.raises(UsageError, match="No such file"):
        load_scenario(str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match="cannot be read"):
        load_scenario(f"{tmp_path}/")
    path = tmp_path / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbfquestion = 'Q?'\nexperiment = 'mesh'\nnodes = 7\n")
    assert value_at(load_scenario(str(path)), "nodes") == 7, "a mark of UTF-8 at the beginning is no part of it"
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"question = 'Q?'\nnodes = \xff\xfe")
    with pytest.raises(UsageError, match=r"line 2: not TOML"):
        load_scenario(str(path))
    os.mkfifo(tmp_path / "pipe.toml")
    for endless in (str(tmp_path / "pipe.toml"), "/dev/zero"):
        with pytest.raises(UsageError, match="not a regular file"):
            load_scenario(endless)


def test_values_are_set_by_short_and_long_keys(tmp_path: Path) -> None:
    text = "[[workload]]\ntasks = 5\n[[workload]]\nkind = 'puts'\n[keys]\nsecond = 'workload.1.tasks'\n"
    scenario = load(tmp_path, text)
    changed = with_values(
        scenario,
        {
            "nodes": "7",
            "loss": "5e-2",
            "second": "3",
            "workload.0.tasks": "9",
            "faults.only": "3,7",
            "note": "12",
            "mode": "die",
            "span": "[1.0, 2.0]",
        },
    )
    settings = changed.settings
    assert isinstance(settings, tiny.TinySettings)
    assert (settings.nodes, settings.loss, settings.note, settings.mode) == (7, 0.05, "12", "die")
    assert [work.tasks for work in settings.workload] == [9, 3]
    assert settings.faults.only == (3, 7) and settings.span == (1.0, 2.0)
    assert with_values(changed, {"span": "none"}).settings.span is None
    assert with_values(changed, {"faults.only": ""}).settings.faults.only == ()
    both = with_values(changed, {"workload.tasks": "4"}).settings
    assert [work.tasks for work in both.workload] == [4, 4]
    assert (value_at(changed, "second"), value_at(changed, "workload.tasks"), value_at(changed, "loss")) == (3, 9, 0.05)
    assert scenario.settings.nodes == 4, "the scenario itself is unchanged"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("nodez", "3", ["--set nodez=3", 'did you mean "nodes"?', "second"]),
        ("nodes", "0", ["--set nodes=0", "a whole number from 1 to 1000"]),
        ("nodes", "many", ["nodes cannot be"]),
        ("nodes", "13", ["13 nodes bring bad luck"]),
        ("hours", "inf", ["finite"]),
        ("faults", "3", ["is a table", "faults.only"]),
        ("faults.only", "3,x", ["faults.only.1"]),
        ("faults.only.0", "3", ["there is nothing to change"]),
        ("workload.7.tasks", "3", ["there is no workload.7", "the scenario has 1 [[workload]]: workload.0"]),
        ("workload.0.taskz", "3", ["allowed: kind, tasks"]),
        ("tasks", "3", ['did you mean "workload.tasks"?']),
        ("fautls.only", "3", ['there is no key "fautls.only"', 'did you mean "faults.only"?']),
        ("zzz", "3", ["see: p2pc sim keys --experiment tiny"]),
        ("nodes.x", "3", ["there is no key", "nodes is a whole number from 1 to 1000"]),
        ("nodes", "9" * 5000, ["nodes cannot be", "a whole number"]),
        ("span", "[" * 5000, ["span cannot be"]),
    ],
)
def test_a_value_that_cannot_be_set_names_what_can(key: str, value: str, words: list[str], tmp_path: Path) -> None:
    scenario = load(tmp_path, "[[workload]]\n[keys]\nsecond = 'workload.0.tasks'\n")
    with pytest.raises(UsageError) as caught:
        with_values(scenario, {key: value})
    for word in words:
        assert word in str(caught.value)


def test_a_scenario_travels_without_its_file(tmp_path: Path) -> None:
    scenario = load(tmp_path, "nodes = 5\n[keys]\nl = 'loss'\n")
    (tmp_path / "mine.toml").unlink()
    assert pickle.loads(pickle.dumps(scenario)) == scenario


def test_the_digest_is_of_the_settings_and_of_nothing_else(tmp_path: Path) -> None:
    one = load(tmp_path, "nodes = 5")
    same = load_scenario(write(tmp_path, "question = 'Another?'\nnodes = 5\nexperiment = 'tiny'\n[keys]\nl='loss'\n"))
    other = with_values(one, {"nodes": "6"})
    assert one.digest() == same.digest() != other.digest()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2,3", ["1", "2", "3"]),
        ("", []),
        ("a", ["a"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("'a,b', c", ["'a,b'", "c"]),
    ],
)
def test_values_of_a_sweep_are_told_apart(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["[a]", "[b.c]", "[[d]]", "[[d.e]]", '["q.r"]', ""]),
            st.lists(
                st.sampled_from(["1", "[\n 1,\n 2\n]", '"""x\ny = 2\n"""', "{ z = 1 }", "'#'  # k = 1"]), max_size=3
            ),
        ),
        max_size=5,
    )
)
def test_every_key_of_valid_toml_has_the_line_on_which_it_stands(tables: list[tuple[str, list[str]]]) -> None:
    lines: list[str] = []
    wanted = []
    for number, (head, values) in enumerate(tables):
        if head:
            lines.append(head)
        for place, value in enumerate(values):
            key = f"key-{number}-{place}"
            wanted.append((key, len(lines) + 1))
            lines += f"{key} = {value}".split("\n")
    text = "\n".join(lines)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # a table given twice
    found = {path[-1]: line for path, line in _lines_of(text).items()}
    for key, line in wanted:
        assert found[key] == line


@pytest.mark.parametrize(
    ("text", "where", "word"),
    [
        ("[checks]\nevery_s = 1\noff = ['all']", "line 5: checks", "only books, conservation"),
        ("[network]\nloss = 0.1\nlatency = 'mars'", "line 5: network", "choose lan, lognormal, king"),
        ("nodes = 3\n[hostile]\nwrong = 3", "line 4: this", "at most 2"),
        ("nodes = 3\nhours = 0.1\nstarts_s = [0, 1]", "line 5: this", "2 of 3 nodes"),
        ("[network.nat]\ncgnat = 0.7\nsymmetric = 0.7", "line 3: network.nat", "exceed 1"),
    ],
)
def test_what_does_not_go_together_is_said_with_the_line_of_the_key_that_is_meant(
    text: str, where: str, word: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        load_scenario(write(tmp_path, f'question = "Does it?"\nexperiment = "mesh"\n{text}\n'))
    assert f"{where} is impossible" in caught.value.what and word in str(caught.value)


def test_what_a_scenario_has_to_say_is_named(tmp_path: Path) -> None:
    for text, fix in ((HEAD.splitlines()[1], 'question = "'), (HEAD.splitlines()[0], 'experiment = "mesh"')):
        with pytest.raises(UsageError) as caught:
            load_scenario(write(tmp_path, text))
        assert fix in str(caught.value.fix)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"starts_s": "[-5,0,1]"}, ["starts_s.0 cannot be -5", "from 0"]),
        ({"starts_s": "[0,1e308,1]"}, ["starts_s.1 cannot be 1e+308"]),
        ({"starts_s": "[5,1,2]"}, ["`starts_s` begins with 0, not 5"]),
        ({"starts_s": "[0,1]"}, ["`starts_s` says when 2 of 3 nodes start"]),
        ({"starts_s": "[0,1,100]"}, ["starts at 100 s, after the end"]),
        ({"hostile.wrong": "50"}, ["50 of 3 nodes are hostile", "at most 2"]),
        ({"hostile.wrong": "1.5"}, ["`wrong` is a share below 1, or a whole number", "not 1.5"]),
        ({"hostile.wrong": "0.7", "hostile.drop": "0.7"}, ["4.2 of 3 nodes are hostile"]),
        ({"checks.every_s": "1e-9"}, ["checks.every_s cannot be 1e-09", "from 0.01"]),
    ],
)
def test_what_a_mesh_cannot_do_is_refused(values: dict[str, str], words: list[str], tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, 'question = "Does it?"\nexperiment = "mesh"\nnodes = 3\nhours = 0.02\n'))
    with pytest.raises(UsageError) as caught:
        with_values(scenario, values)
    for word in words:
        assert word in str(caught.value)
    with_values(scenario, {"starts_s": "[0,70,3,9]", "hostile.wrong": "2", "checks.every_s": "0.01"})
