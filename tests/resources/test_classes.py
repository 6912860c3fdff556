"""Classes and masks: if they were unsound, a search would leave out nodes that could run the job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.host.interfaces import RUNTIMES, Value
from p2pcompute.limits import CLASS_BYTES, TUPLE_BYTES
from p2pcompute.resources.classes import bits_of, features_asked, features_of, mask_of, tuple_of
from p2pcompute.resources.expressions import compile_expression
from p2pcompute.resources.matching import Needs, compile_needs

_GIB = 2**30
_AMOUNTS = st.sampled_from([0, 0.5, 1, 2, 3, 4, 7.5, 8, 9, 64, 200, 256, 1000])
_SIZES = st.sampled_from([0, 1, _GIB, 2 * _GIB, 5 * _GIB, 8 * _GIB - 1, 8 * _GIB, 8 * _GIB + 1, 81 * _GIB, 2000 * _GIB])
_TEXTS = st.sampled_from(["linux", "macos", "plan9", "x86_64", "aarch64", "lab", "3.11", "3.99", "docker", "ffmpeg"])
_LISTS = st.lists(_TEXTS, max_size=3).map(tuple)
_KINDS: dict[str, st.SearchStrategy[Value]] = {
    "cpus": _AMOUNTS,
    "mem.total": _SIZES,
    "gpu.count": _AMOUNTS,
    "gpu.mem": _SIZES,
    "os": _TEXTS,
    "arch": _TEXTS,
    "gpu.model": _TEXTS,
    "label.room": _TEXTS,
    "python": _LISTS,
    "has": _LISTS,
    "tag": _LISTS,
}
_SETTINGS = ("label.room", "tag")
_NODES = st.fixed_dictionaries(
    {name: _KINDS[name] for name in _SETTINGS},
    optional={name: kind for name, kind in _KINDS.items() if name not in _SETTINGS},
)


@st.composite
def _clauses(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(sorted(_KINDS)))
    value = draw(_KINDS[name])
    if isinstance(value, tuple):
        text = draw(_TEXTS)
        return draw(st.sampled_from([f"'{text}' in node.{name}", f"!('{text}' in node.{name})"]))
    op = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
    shown = f"'{value}'" if isinstance(value, str) else repr(value)
    clause = f"node.{name} {op} {shown}"
    return draw(st.sampled_from([clause, f"!({clause})", f"({clause} || node.cpus > 3)", f"{shown} {op} node.{name}"]))


@given(values=_NODES, clauses=st.lists(_clauses(), min_size=1, max_size=4))
def test_no_node_is_left_out_that_fits_or_does_not_know(values: dict[str, Value], clauses: list[str]) -> None:
    expression = compile_expression(" && ".join(clauses))
    mask = mask_of(features_asked([expression]))
    if expression.evaluate(values) is not False:
        assert tuple_of(values) & mask == mask


@given(values=_NODES, clauses=st.lists(_clauses(), min_size=1, max_size=3))
def test_whoever_fits_has_every_feature_that_is_asked_for(values: dict[str, Value], clauses: list[str]) -> None:
    """So it advertises them, if they are rare, and is found under any of them."""
    expression = compile_expression(" && ".join(clauses))
    if expression.evaluate(values) is True:
        assert set(features_asked([expression])) <= set(features_of(values))


@given(values=_NODES)
def test_the_tuple_fits_its_bytes_and_has_the_bits_of_every_feature(values: dict[str, Value]) -> None:
    bits = tuple_of(values)
    assert 0 <= bits < 1 << 8 * TUPLE_BYTES
    assert all(bits & bits_of(feature) == bits_of(feature) for feature in features_of(values))


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("cpus>=8", ["cpus>=8"]),
        ("cpus>8 && os=linux", ["cpus>=8", "os=linux"]),
        ("node.cpus >= 6", ["cpus>=4"]),
        ("cpus < 8 && os != linux", []),
        ("gpu.count > 0", ["gpu.count>0"]),
        ("gpu>=1", ["gpu.count>0"]),
        ("mem.free >= 9GiB", [f"mem.total>={8 * _GIB}"]),
        ("has=docker && has=ffmpeg", ["has=docker"]),
        ("label.room='b 12' && tag=lab", ["label.room=b 12", "tag=lab"]),
        ("gpu.model = A100", ["gpu.model=A100"]),
        ("python=3.11 && python=4.0", ["python=3.11", "python=4.0"]),
        ("load < 5", []),
        ("os=linux || os=macos", []),
    ],
)
def test_what_follows_from_an_expression(text: str, asked: list[str]) -> None:
    assert features_asked([compile_expression(text)]) == asked


def test_amounts_of_a_job_ask_for_features() -> None:
    requirement = compile_needs(Needs(require=("os=linux",), cpus=16, gpus=1, mem_bytes=32 * _GIB))
    asked = features_asked([clause.expression for clause in requirement.clauses])
    assert asked == ["os=linux", "cpus>=16", f"mem.total>={32 * _GIB}", "gpu.count>0"]


def test_a_node_that_says_nothing_of_itself_has_a_full_class_and_no_features() -> None:
    full = tuple_of({})
    assert features_of({}) == []
    everything = mask_of([f"has={name}" for name in RUNTIMES] + ["cpus>=256", "os=linux", "gpu.count>0"])
    assert full & everything == everything
    assert everything < 1 << 8 * CLASS_BYTES <= mask_of(["gpu.model=A100"]) & full


def test_most_masks_of_labels_leave_others_out() -> None:
    known: dict[str, Value] = {"os": "linux", "arch": "x86_64", "python": ("3.11",), "gpu.count": 0}
    bits = tuple_of({**known, "tag": ("lab", "fast"), "label.room": "b12"})
    others = [mask_of([f"tag=t{number}"]) for number in range(1000)]
    assert sum(bits & mask == mask for mask in others) < 10
