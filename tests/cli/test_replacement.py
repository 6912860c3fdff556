"""Replacement strings: GNU parallel's values, and shell strings in which no input is ever read as code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pcompute.cli.inputs import Row
from p2pcompute.cli.replacement import Form, Template, choose_form, expand_list, unknown_names
from p2pcompute.errors import UsageError

PATHS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("parallel_cases.json").read_text())["paths"]


@pytest.mark.parametrize("text", PATHS)
def test_path_operations_are_those_of_gnu_parallel(text: str) -> None:
    row = Row((text,))
    assert {field: expand_list(field, row, 1) for field in PATHS[text]} == {
        field: [path] for field, path in PATHS[text].items()
    }
    assert expand_list("{1.}", row, 1) == [PATHS[text]["{.}"]]


def argv(words: list[str], *columns: str, seq: int = 1, names: dict[str, str] | None = None) -> list[str]:
    return Template(words, Form.ARGV).argv(Row(columns, columns, names or {}), seq)


def test_words_are_replaced_one_by_one_and_never_split() -> None:
    assert argv(["cp", "{}", "x{.}y"], "a b.c") == ["cp", "a b.c", "xa by"]
    assert argv(["echo", "-e"], "a b", "c") == ["echo", "-e", "a b", "c"]
    assert argv(["echo", "{}", "pre{}"], "a", "b") == ["echo", "a", "b", "prea b"]
    assert argv(["echo", "{#}", "{-1}", "{2}", "[{3}]"], "a", "b", seq=7) == ["echo", "7", "b", "b", "[]"]
    assert argv(["awk", "{print $1}", "{}"], "f") == ["awk", "{print $1}", "f"]


def test_names_are_replaced_only_where_they_are_known() -> None:
    assert argv(["echo", "{x}", "{x.}", "{y}"], "v.w", names={"x": "v.w"}) == ["echo", "v.w", "v", "{y}"]
    assert argv(["echo", "{x}"], "v") == ["echo", "{x}", "v"], "nothing was replaced, so the input is appended"
    assert argv(["echo", "{a.}"], "v", names={"a.": "whole"}) == ["echo", "whole"]


def test_the_slot_is_put_in_where_the_task_runs() -> None:
    words = argv(["printf", "%s", "it's {%}", "{}"], "$HOME x")
    assert words[:2] == ["/bin/sh", "-c"]
    done = subprocess.run(words, env={"PARALLEL_JOBSLOT": "3"}, capture_output=True, check=True, text=True)
    assert done.stdout == "it's 3$HOME x"


@pytest.mark.parametrize("text", ["echo {%} '{%}' \"{%}\""])
def test_the_slot_in_a_shell_string(text: str) -> None:
    (command,) = Template([text], Form.SHELL).argv(Row(("x",)), 1)
    done = subprocess.run(["sh", "-c", command], env={"PARALLEL_JOBSLOT": "3"}, capture_output=True, check=True)
    assert done.stdout == b"3 3 3\n"


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (["echo", "a b"], Form.ARGV),
        (["echo"], Form.ARGV),
        (["./x.sh"], Form.ARGV),
        (["{}"], Form.ARGV),
        (["echo {}"], Form.SHELL),
        (["a|b"], Form.SHELL),
        (["x>{}"], Form.SHELL),
        (["$SHELL"], Form.SHELL),
        (["{.}"], Form.ARGV),
    ],
)
def test_one_word_with_shell_signs_is_for_the_shell(words: list[str], form: Form) -> None:
    assert choose_form(words) is form


ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
TEXT = ANY_TEXT | st.text("'\"\\$`(){} \n#;&|*~!x", max_size=8)
PLACES = ["{}", "'{}'", '"{}"', '"x"{}', "'x'{}", '"$(printf %s {})"', '"$(printf %s "{}")"', "$'x'{}"]


def run_shell(template: str, value: str) -> str:
    (command,) = Template([template], Form.SHELL).argv(Row((value,)), 1)
    return subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout.decode()


@settings(max_examples=60)
@given(st.sampled_from(PLACES[:5]), TEXT)
@example('"{}"', "$(touch /tmp/should-not-be)")
@example('"{}"', "`id`")
@example("'{}'", "'; id; '")
@example("{}", "a\nb")
def test_an_input_arrives_as_it_is_wherever_it_stands(place: str, value: str) -> None:
    """Where this fails, an input's name could run as a command."""
    prefix = "x" if "x" in place.replace("{}", "") else ""
    assert run_shell(f"printf %s {place}", value) == prefix + value


@settings(max_examples=20)
@given(TEXT)
def test_within_a_command_substitution_quoting_starts_afresh(value: str) -> None:
    whole = value.rstrip("\n")
    for place in PLACES[5:7]:
        assert run_shell(f"printf %s {place}", whole + ".") == whole + "."


def test_an_input_in_a_comment_stays_in_it() -> None:
    assert run_shell("echo a # {}", "b\necho bad") == "a\n"


@pytest.mark.parametrize(
    "template",
    [
        "echo `cat {}`",
        "echo ${X:-{}}",
        "cat <<E\n{}\nE",
        r"echo \{}",
        'echo "\\{}"',
        "echo ${}",
        'echo "a`{}`"',
        "echo $(case x in x) echo {};; esac)",
    ],
)
def test_places_where_quoting_is_not_certain_are_refused(template: str) -> None:
    with pytest.raises(UsageError, match="cannot be quoted safely"):
        Template([template], Form.SHELL).argv(Row(("x",)), 1)


def test_a_shell_string_without_replacement_gets_the_input_appended() -> None:
    assert run_shell("printf %s.", "a b") == "a b."
    with pytest.raises(UsageError, match="not closed"):
        Template(["echo 'a"], Form.SHELL).argv(Row(("x",)), 1)
    (command,) = Template(["echo x"], Form.SHELL).argv(Row(()), 1)
    assert command == "echo x"


def test_patterns_of_files() -> None:
    row = Row(("a.tif", "b.tif"))
    assert expand_list("{}", row, 1) == ["a.tif", "b.tif"]
    assert expand_list("{.}.png", row, 1) == ["a b.png"]
    assert expand_list("{2.}.png", row, 1) == ["b.png"]


def test_text_for_people_can_be_pasted_into_a_shell() -> None:
    template = Template(["echo", "{}", "it's {%}"], Form.ARGV)
    assert template.text(Row(("a b",)), 1) == "echo 'a b' 'it'\"'\"'s {%}'"


@pytest.mark.parametrize(
    ("words", "names", "unknown"),
    [
        (["echo", "{z}", "{zed.}", "{}"], (), ["{z}", "{zed.}"]),
        (["echo {name} {nmae/}"], ("name",), ["{nmae/}"]),
        (["echo {1} {-1/} {#} {%} {//} {.} {a,b} {1..3} {}"], (), []),
        (["echo ${HOME} ; curl -w %{http_code} {}; docker ps --format {{Names}}"], (), []),
        (["awk '{print}' {}"], (), []),
    ],
)
def test_what_looks_like_a_replacement_string(words: list[str], names: tuple[str, ...], unknown: list[str]) -> None:
    """A mistyped column runs a thousand tasks on the wrong text, and nothing says so."""
    assert unknown_names(words, names) == unknown
