"""What a node has in 24 bytes, so that others can look for it without asking everybody.  Pure.

A *feature* is something that a node has or has not: ``cpus>=8``, ``os=linux``, ``has=docker``, ``tag=lab``.  Amounts
are features at fixed steps.  Those that are common in most groups have a bit each in the node's *class* of 8 bytes;
all others set three bits each in the 16 bytes of a Bloom filter behind it; class and filter are the *tuple*.
What few nodes have they advertise, under one key for each feature (`dht.index`).

What a requirement asks for becomes the features that follow from it, so that the question "may this node fit?" is
``tuple & mask == mask`` and can be answered by peers that know nothing of attributes.  It never leaves out a node that
could fit: of what a node does not know of itself all bits are set (its labels and tags it knows); upper bounds,
negations and alternatives ask for nothing; applications other than runtimes, which a node looks for only when it is
asked, neither.

Source: Bloom, Space/time trade-offs in hash coding with allowable errors, 1970.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Final, TypeGuard

from p2pcompute.host.interfaces import RUNTIMES, Value
from p2pcompute.limits import CLASS_BYTES, TUPLE_BYTES
from p2pcompute.resources.expressions import Expression
from p2pcompute.resources.notation import Comparison

_GIB: Final = 2**30
_ANY: Final = math.nextafter(0.0, 1.0)
"""Less than any amount that is not zero."""
_STEPS: Final[Mapping[str, Sequence[float]]] = {
    "cpus": (2, 4, 8, 16, 32, 64, 128, 256),
    "mem.total": tuple(_GIB << power for power in range(1, 11)),
    "gpu.count": (_ANY, 2, 4, 8),
    "gpu.mem": tuple(_GIB * size for size in (4, 8, 16, 24, 40, 80)),
}
_CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "os": ("linux", "macos", "windows"),
    "arch": ("x86_64", "aarch64"),
}
_MEMBERS: Final[Mapping[str, Sequence[str]]] = {
    "python": ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15"),
    "has": RUNTIMES,
}
_NAMED: Final = ("gpu.model", *_CHOICES)
"""Texts whose other values are features without a bit."""
_NAMED_LISTS: Final = ("tag", "python")
_ENTAILED: Final = {"mem.free": "mem.total"}
"""Who has so much of the first has so much of the second."""
_HASHES: Final = 3


def _amount(name: str, step: float) -> str:
    return f"{name}>0" if step == _ANY else f"{name}>={int(step)}"


def _equal(name: str, value: str) -> str:
    return f"{name}={value}"


_GROUPS: Final[Mapping[str, Sequence[str]]] = {
    **{name: [_amount(name, step) for step in steps] for name, steps in _STEPS.items()},
    **{name: [_equal(name, text) for text in texts] for name, texts in {**_CHOICES, **_MEMBERS}.items()},
}
_BITS: Final = {feature: 1 << at for at, feature in enumerate(one for group in _GROUPS.values() for one in group)}
_ALL_OF: Final = {name: sum(_BITS[feature] for feature in group) for name, group in _GROUPS.items()}
assert len(_BITS) <= 8 * CLASS_BYTES
_FILTER_BITS: Final = 8 * (TUPLE_BYTES - CLASS_BYTES)
_WHOLE_FILTER: Final = (1 << _FILTER_BITS) - 1 << 8 * CLASS_BYTES


def features_of(values: Mapping[str, Value]) -> list[str]:
    """Return what a node is known to have, in a fixed order, each once."""
    found = []
    for name, steps in _STEPS.items():
        value = values.get(name)
        found += [_amount(name, step) for step in steps if _is_number(value) and value >= step]
    for name in (*_NAMED, *sorted(name for name in values if name.startswith("label."))):
        value = values.get(name)
        found += [_equal(name, value)] if isinstance(value, str) else []
    for name in (*_MEMBERS, *_NAMED_LISTS):
        value = values.get(name)
        texts = value if isinstance(value, tuple) else ()
        found += [_equal(name, text) for text in texts if name != "has" or text in RUNTIMES]
    return list(dict.fromkeys(found))


def tuple_of(values: Mapping[str, Value]) -> int:
    """Return the tuple of a node, at most 8 · TUPLE_BYTES bits; its class is the low 8 · CLASS_BYTES ones."""
    bits = 0
    for feature in features_of(values):
        bits |= bits_of(feature)
    for name, everything in _ALL_OF.items():
        if not _is_told(name, values.get(name)):
            bits |= everything
    has_no_gpu = values.get("gpu.count") == 0
    texts = (*_CHOICES, "python") if has_no_gpu else (*_CHOICES, "python", "gpu.model")
    if not all(_is_told(name, values.get(name)) for name in texts):
        bits |= _WHOLE_FILTER
    return bits


def bits_of(feature: str) -> int:
    """Return the bits of the tuple that a feature sets: one of the class, or some of the filter."""
    bit = _BITS.get(feature)
    return _filter_bits(feature) if bit is None else bit


def features_asked(expressions: Sequence[Expression]) -> list[str]:
    """Return what every node must have of which all these are true: for amounts the largest step that follows."""
    found: dict[str, None] = {}
    for expression in expressions:
        for part in expression.parts():
            feature = None if part.comparison is None else _entailed(part.comparison)
            if feature is not None:
                found[feature] = None
    return list(found)


def mask_of(features: Sequence[str]) -> int:
    """Return the bits that are set in the tuple of every node that has these features or does not know whether."""
    mask = 0
    for feature in features:
        mask |= bits_of(feature)
    return mask


def _entailed(comparison: Comparison) -> str | None:
    """The feature that follows from a comparison; None when none does."""
    name, op, value = _ENTAILED.get(comparison.name, comparison.name), comparison.op, comparison.value
    if name in _STEPS and op in (">", ">=", "==") and _is_number(value):
        least = math.nextafter(value, math.inf) if op == ">" else value
        steps = [step for step in _STEPS[name] if step <= least]
        return _amount(name, steps[-1]) if steps else None
    if not isinstance(value, str):
        return None
    if op == "==" and (name in _NAMED or name.startswith("label.")):
        return _equal(name, value)
    is_listed = name in _NAMED_LISTS or value in _MEMBERS.get(name, ())
    return _equal(name, value) if op == "in" and is_listed else None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_told(name: str, value: Value | None) -> bool:
    """Whether a value is of a kind that says which features of `name` a node has."""
    if name in _STEPS:
        return _is_number(value)
    return isinstance(value, tuple if name in _MEMBERS else str)


def _filter_bits(feature: str) -> int:
    digest = hashlib.sha256(feature.encode()).digest()
    bits = 0
    for at in range(_HASHES):
        bits |= 1 << 8 * CLASS_BYTES + int.from_bytes(digest[4 * at : 4 * at + 4], "big") % _FILTER_BITS
    return bits
