"""Expressions: what people write is understood, unknown is never false, and no text of a peer does harm."""

from __future__ import annotations

import contextlib
import string
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.errors import UsageError
from p2pcompute.host.interfaces import Value
from p2pcompute.limits import EXPRESSION_CHARS_MAX, EXPRESSION_DEPTH_MAX
from p2pcompute.resources.expressions import (
    View,
    check_condition,
    check_rank,
    compile_expression,
    is_heard,
    names_of_some,
    nearest_name,
)
from p2pcompute.resources.notation import NODE_EXAMPLES

LAB: dict[str, Value] = {
    "id": "K7QD-3MZF",
    "name": "lab-7",
    "version": "1.5.1",
    "os": "linux",
    "arch": "x86_64",
    "cpus": 8.0,
    "mem.total": 16 << 30,
    "mem.free": 8 << 30,
    "python": ("3.11", "3.12"),
    "has": ("ffmpeg", "wasm"),
    "tag": ("lab",),
    "load": 0.25,
    "slots.total": 8,
    "slots.busy": 3,
    "battery": False,
    "label.room": "b12",
    "label.rack": "3",
    "label.in": "yes",
}
"""A machine that says nothing of its GPUs and disks."""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # shorthand
        ("os=linux", True),
        ("os!=linux", False),
        ("arch = arm64", False),
        ("has=ffmpeg", True),
        ("has=blender", False),
        ("has!=blender", True),
        ("!has=ffmpeg", False),
        ("tag=lab && has=wasm", True),
        ("python=3.12", True),
        ("python=3.1", False),
        ("mem>=8GiB", True),
        ("mem>=17G", False),
        ("mem.free < 8.5GiB", True),
        ("cpus>=8", True),
        ("cpus=8", True),
        ("slots=8", True),
        ("name=lab-7", True),
        ("name!=lab-8", True),
        ("version=1.5.1", True),
        ("label.rack=3", True),
        ("label.in=yes", True),
        ("battery=false", True),
        ("!battery", True),
        ("load!=cpus", True),
        ("(os=linux || os=macos) && has=ffmpeg", True),
        # CEL
        ("node.os == 'linux'", True),
        ("node.os in ['linux', 'macos'] && node.cpus > 7.5", True),
        ("'ffmpeg' in node.has", True),
        ("!('ffmpeg' in has)", False),
        ("node.has == 'ffmpeg'", True),
        ("has.exists(x, x.startsWith('ff'))", True),
        ("has.all(x, size(x) > 4)", False),
        ("has.filter(x, x != 'wasm').size() == 1", True),
        ("has[0] == 'ffmpeg'", True),
        ("node.name.matches('lab-[0-9]+')", True),
        ("name.matches(r'\\d')", True),
        ("slots.total - slots.busy >= 5", True),
        ("load * 4 == 1 && mem.free / cpus == 1GiB", True),
        ("battery ? cpus > 100 : cpus > 1", True),
        ("cpus >= 8u && 0x10 == 16 && 1e3 > .5", True),
        ("job.mem <= 1G", True),
        ("has(node.gpu) || has(mem)", True),
        # unknown
        ("node.gpu.count > 0", None),
        ("gpu>0", None),
        ("!(gpu>0)", None),
        ("gpu.model=A100", None),
        ("disk>=1G", None),
        ("label.nope=3", None),
        ("node.gpu.count > 0 || node.cpus >= 8", True),
        ("cpus >= 8 || gpu > 0", True),
        ("cpus < 8 || gpu > 0", None),
        ("gpu>0 && cpus<2", False),
        ("cpus<2 && gpu>0", False),
        ("gpu>0 && cpus>2", None),
        ("gpu>0 ? true : true", None),
        ("[true].exists(x, gpu > 0 || x)", True),
        # neither true nor false
        ("cpus", None),
        ("cpus > 'a'", None),
        ("has[9] == 'a'", None),
        ("os=linux && cpus", None),
        ("os=mac && cpus", False),
    ],
)
def test_value(text: str, value: bool | None) -> None:
    expression = compile_expression(text)
    view = View(LAB, {"mem": 1 << 30})
    assert expression.evaluate(view) is value
    assert expression.job_names or expression.evaluate(LAB) is value
    if value is None and not expression.clauses:
        assert expression.why_unknown(view)


def test_nothing_is_known_of_a_node_that_has_not_said() -> None:
    assert compile_expression("os=linux && cpus>=1").evaluate({}) is None
    assert compile_expression("os=linux || true").evaluate({}) is True


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("node.cpus >=", 13, "ends too early"),
        ("cpus>=8 &&", 11, "something is missing"),
        ("&& cpus>=8", 1, "something is missing"),
        ("os=linux && && cpus>1", 13, "something is missing"),
        ("(cpus>1 && os=linux", 1, "never closed"),
        ("cpus>=8)", 8, "closes nothing"),
        ("[cpus)", 6, "closes nothing"),
        ("os == 'linux", 7, "no end"),
        ("cpus & 3", 6, "single &"),
        ("cpus > 2 # many", 10, "'#'"),
        ("cpus>8 cpus", 8, "cannot stand here"),
        ("mem>=8 GiB", 8, "cannot stand here"),
        ("mem>=8XB", 6, "not a number"),
        ("cpus>1e400", 6, "too large"),
        ("os=linux && has=ffmpeg && cpus > > 2", 34, "cannot stand here"),
        ("max(cpus, 3) > 2", 1, "no function max"),
        ("has.map(x, x) == []", 5, "no function map"),
        ("has.all(x, has.all(y, true))", 16, "inside another loop"),
        ("has.all(x, x.matches('a'))", 14, "inside a loop"),
        ("has.all(node, true)", 9, "cannot be the name"),
        ("has.all('a', true)", 9, "takes a name first"),
        ("all(has, true)", 1, "needs a list"),
        ("name.matches('a{9}')", 14, "counts"),
        ("name.matches(os)", 14, "in quotes"),
        ("name.matches('" + "a" * 65 + "')", 14, "too long"),
        ("name.matches('\\\\w\\\\w\\\\w\\\\w\\\\w\\\\w\\\\w\\\\w\\\\w')", 14, "backslashes"),
        ("name.matches('é')", 14, "ASCII"),
        ("os == '\\d'", 8, "means nothing"),
        ("node", 1, "whole machine"),
        ("{1: 2}[1] == 2", 1, "'{'"),
        ("b'a' == b'a'", 2, "cannot stand here"),
        ("'''a''' == 'a'", 3, "cannot stand here"),
        ("cpus // 3\n", 7, "cannot stand here"),
    ],
)
def test_error_points_at_the_column(text: str, column: int, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        compile_expression(text)
    assert what in caught.value.what
    head, shown, caret = caught.value.why.split("\n")
    assert (head, caret) == (f"column {column} of this expression:", " " * (column - 1) + "^")
    assert text.replace("\n", " ").startswith(shown)


def test_error_in_a_long_expression_shows_the_place() -> None:
    with pytest.raises(UsageError) as caught:
        compile_expression("cpus>=8 && " * 30 + "cpus > > 2")
    _head, shown, caret = caught.value.why.split("\n")
    assert len(shown) <= 76
    assert shown[caret.index("^") :] == "> 2"


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("nod.cpus > 3", "no node could have nod.cpus", "did you mean node.cpus?"),
        ("node.cpu > 3", "no node could have cpu", "did you mean cpus?"),
        ("mem.totl > 3", "no node could have mem.totl", "did you mean mem.total?"),
        ("node.Cpus > 3", "no node could have Cpus", "did you mean cpus?"),
        ("node.mem > 3", "node.mem is several values", "it is one of mem.total, mem.free"),
        ("os == linux", "linux is no attribute of nodes", "text needs quotes: 'linux'"),
        ("job.nam == 'x'", "no node could have job.nam", "did you mean job.name?"),
        ("job.zzz == 1", "no node could have job.zzz", "there are: job.name, job.kind, job.submitter, job.cpus, "),
        ("cpus > '8'", "this mixes different kinds of values", "cpus is a number"),
        ("os=linux && cpus=many", "this mixes different kinds of values", "cpus is a number"),
        ("battery=yes", "this mixes different kinds of values", "battery is true or false"),
        ("battery!=1", "this mixes different kinds of values", "battery is true or false"),
        ("cpus%2==0", "this mixes different kinds of values", "% takes whole numbers: int(cpus) % int(2) == 0"),
        ("os>5", "this mixes different kinds of values", "os is text"),
        ("label.room>5", "this mixes different kinds of values", "label.room is text; as a number: double(label.room)"),
        ("job.name>3", "this mixes different kinds of values", "job.name is text"),
        ("label.room", "this gives text, not true or false", "compare it with something, like cpus>=8"),
        ("cpus", "this gives a number, not true or false", "compare it with something, like cpus>=8"),
        ("has", "this gives a list, not true or false", "compare it with something, like cpus>=8"),
    ],
)
def test_what_no_node_could_answer_is_refused(text: str, what: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_condition(compile_expression(text))
    assert caught.value.what == what and (caught.value.fix or "").startswith(fix)


@pytest.mark.parametrize(
    "text",
    [
        "fpga.count>3",
        "label.room=b12",
        "int(cpus) % int(2) == 0",
        "python!=3.12",
        "name=5",
        "label.room=5",
        "label.gpu=true",
        "double(label.room)>5",
        "has(node.gpu)",
        "has(mem)",
        "gpu>0",
        "job.kind=='shell'",
    ],
)
def test_what_a_node_could_answer_is_accepted(text: str) -> None:
    check_condition(compile_expression(text))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        *(("foo", ""), ("ram", "mem.total"), ("cpu.count", "cpus"), ("memory.free", "mem.total"), ("fpga.count", "")),
        ("site.rack", ""),
        *(("memfree", "mem.free"), ("rack.rwo", "rack.row"), ("label.zoen", "label.zone"), ("hostname", "name")),
    ],
)
def test_what_is_meant_by_a_name_that_no_node_has(name: str, near: str) -> None:
    """A job waits for ever for a word that means nothing, and nobody says so."""
    heard = ("rack.row", "label.zone", "cpus")
    assert names_of_some([name, "cpus", "gpu"]) == [name] and not is_heard(name, heard)
    assert nearest_name(name, heard) == near
    assert is_heard("rack", heard) and is_heard("cpus", heard) and not is_heard("rac", heard)


def test_every_known_attribute_may_be_named_alone() -> None:
    for name in NODE_EXAMPLES:
        assert compile_expression(f"{name} == {name}").evaluate(NODE_EXAMPLES) is True


@pytest.mark.parametrize(
    ("text", "rank"), [("cpus", 8), ("-load", -0.25), ("has=ffmpeg", 1), ("gpu", None), ("os", None)]
)
def test_rank(text: str, rank: float | None) -> None:
    assert compile_expression(text).rank(LAB) == rank


def test_a_preference_that_is_text_is_refused() -> None:
    check_rank(compile_expression("fpga.speed"))
    check_rank(compile_expression("double(label.floor)"))
    for text in ("os", "label.floor"):
        with pytest.raises(UsageError, match="a number or a condition"):
            check_rank(compile_expression(text))


def test_parts_of_a_conjunction() -> None:
    text = "os=linux && (cpus>=8 && !(has=a || tag=b)) && (gpu>0 || mem>=8GiB)"
    parts = compile_expression(text).parts()
    assert [part.text for part in parts] == ["os=linux", "cpus>=8", "!(has=a || tag=b)", "gpu>0 || mem>=8GiB"]
    assert [part.names for part in parts] == [("os",), ("cpus",), ("has", "tag"), ("gpu.count", "mem.total")]
    # Here && binds more tightly than what stands beside it.
    assert len(compile_expression("os=linux && cpus>1 || tag=a").parts()) == 1
    assert len(compile_expression("battery ? cpus>1 && mem>1 : true").parts()) == 1


def test_a_comparison_is_known_as_such() -> None:
    text = "mem>=8GiB && 'ffmpeg' in has && !('a' in node.tag) && os!='mac' && 8 < cpus"
    found = [part.comparison for part in compile_expression(text).parts()]
    seen = [(one.name, one.op, one.value, text[one.start : one.end]) if one else None for one in found]
    assert seen == [
        ("mem.total", ">=", 8 << 30, "8GiB"),
        ("has", "in", "ffmpeg", "'ffmpeg'"),
        ("tag", "not in", "a", "'a'"),
        ("os", "!=", "mac", "'mac'"),
        None,
    ]


def test_words_are_the_applications_asked_for() -> None:
    assert compile_expression("os=linux && has=ffmpeg && ('a' in has || has!=b)").words == ("ffmpeg", "a", "b")


def test_limits() -> None:
    assert compile_expression("(" * EXPRESSION_DEPTH_MAX + "true" + ")" * EXPRESSION_DEPTH_MAX).evaluate({}) is True
    for text in (
        "(" * (EXPRESSION_DEPTH_MAX + 1) + "true" + ")" * (EXPRESSION_DEPTH_MAX + 1),
        "&& true" * EXPRESSION_CHARS_MAX,
        "[1].all(x, true) && " * 3 + "true",
        "name.matches('a') && " * 3 + "true",
    ):
        with pytest.raises(UsageError):
            compile_expression(text)
    for sign in "!-":
        compile_expression(sign * (EXPRESSION_CHARS_MAX - 4) + "true").evaluate({})
    for sign in "([{'\"&|!-.,?:<":
        with pytest.raises(UsageError):
            compile_expression(sign * EXPRESSION_CHARS_MAX)


_PIECES = (
    "node,job,cpus,mem,total,has,in,true,null,8,0.5,8GiB,'a',\"b\",x,exists,all,filter,matches,size,label,load,os,"
    "(,),[,],{,},&&,||,!,==,=,!=,<,<=,>=,?,:,-,+,*,/,%,.,\\,\n,é,r'\\d',0x1F,1e300,#,@,',\","
)
WORDS = _PIECES.split(",")


@given(
    st.lists(st.sampled_from(WORDS), max_size=20).flatmap(
        lambda w: st.sampled_from(["".join(w), " ".join(w), ",".join(w)])
    )
)
def test_any_text_is_an_expression_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        expression = compile_expression(text)
        assert expression.evaluate(LAB) in (True, False, None)
        assert all(isinstance(part.why_unknown(View({})), str) for part in expression.parts())
        check_condition(expression)
        check_rank(expression)


@given(st.text(max_size=60))
def test_any_characters_are_an_expression_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        compile_expression(text).evaluate(LAB)


@given(st.text(st.characters(exclude_characters="\\'", exclude_categories=("Cs", "Cc")), max_size=40))
def test_any_text_in_quotes_stays_what_it_is(text: str) -> None:
    assert compile_expression(f"name == '{text}'").evaluate({"name": text}) is True


Tree = tuple[str, bool | None]


def _trees() -> st.SearchStrategy[Tree]:
    """Conditions with their value by Kleene's logic."""

    def joined(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        def conjunction(pair: tuple[Tree, Tree]) -> Tree:
            values = [pair[0][1], pair[1][1]]
            value = False if False in values else None if None in values else True
            return f"({pair[0][0]} && {pair[1][0]})", value

        def disjunction(pair: tuple[Tree, Tree]) -> Tree:
            values = [pair[0][1], pair[1][1]]
            value = True if True in values else None if None in values else False
            return f"({pair[0][0]} || {pair[1][0]})", value

        def negation(tree: Tree) -> Tree:
            return f"!({tree[0]})", None if tree[1] is None else not tree[1]

        pairs = st.tuples(children, children)
        return pairs.map(conjunction) | pairs.map(disjunction) | children.map(negation)

    leaves: list[Tree] = [
        ("cpus>=8", True),
        ("tag=lab", True),
        ("os=mac", False),
        ("gpu>0", None),
        ("label.x=a", None),
        ("cpus>'a'", None),
    ]
    return st.recursive(st.sampled_from(leaves), joined, max_leaves=8)


@given(_trees())
def test_unknown_is_a_third_value(tree: Tree) -> None:
    text, value = tree
    assert compile_expression(text).evaluate(LAB) is value


@given(
    st.dictionaries(
        st.text(string.ascii_lowercase + ".", min_size=1, max_size=8), st.integers() | st.text(), max_size=8
    )
)
def test_any_names_of_a_peer_make_a_view(values: dict[str, int | str]) -> None:
    """Names of which one is the beginning of another cannot both be seen; neither may they break anything."""
    assert compile_expression("cpus > 1 || true").evaluate(values) is True


def test_only_the_extension_module_is_loaded() -> None:
    """The package's command line, which its import brings along, costs more CPU than a whole `p2pc status` may."""
    script = (
        "import sys; from p2pcompute.resources.expressions import compile_expression as c; c('true').evaluate({});"
        "assert 'rich' not in sys.modules and 'cel' not in sys.modules;"
        "import cel; assert cel.evaluate('1 + 1') == 2"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
