"""What is known of a node: typed values with their age, as they travel between nodes.  Pure.

After the DCE Resource Information Service: each value comes with the time of its measurement, how long it may be
believed and how exact it is.  What a node cannot know it leaves out, so that "unknown" never looks like zero or false.

On the wire it is canonical CBOR ``[now, {name: [value, age, lifetime, accuracy]}]``: the wall clock of the sender in
ms, ages and lifetimes in ms, null for None.  Ages, not times: the receiver counts them from its own clock, so that
clocks that differ by minutes do no harm.
"""

from __future__ import annotations

import math
from typing import Any, Final

from p2pcompute.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute.host.attribute_rules import check_name, check_value
from p2pcompute.host.interfaces import Attribute, Attributes, Value
from p2pcompute.limits import ATTRIBUTE_LIFETIME_S_MAX, ATTRIBUTES_BYTES_MAX, ATTRIBUTES_MAX
from p2pcompute.wire import cbor
from p2pcompute.wire.fields import listed

__all__ = [
    "Attribute",
    "Attributes",
    "Value",
    "age_s",
    "check_name",
    "check_value",
    "decode_attributes",
    "encode_attributes",
    "is_believed",
    "values",
]

_WALL_MS_MAX: Final = 2**50
"""Some 35,000 years: every time is exact as a float of seconds to the millisecond."""


def encode_attributes(attributes: Attributes, wall_s: float) -> bytes:
    """Return the wire form; times are rounded to ms, and what seems to be measured in the future is measured now.

    Args:
        wall_s: the clock by which `attributes` were measured, now.

    Raises:
        LocalProtocolError: they break a limit or a rule (our bug: probes are checked where they are read).
    """
    now = round(wall_s * 1000)
    body = {
        name: [
            list(item.value) if isinstance(item.value, tuple) else item.value,
            max(0, now - round(item.measured_s * 1000)),
            None if item.lifetime_s is None else round(item.lifetime_s * 1000),
            item.accuracy if item.accuracy is None else float(item.accuracy),
        ]
        for name, item in attributes.items()
    }
    data = cbor.encode([now, body])
    try:
        decode_attributes(data)
    except RemoteProtocolError as error:
        raise LocalProtocolError("attributes that may not travel", error.what) from error
    return data


def decode_attributes(data: bytes, received_s: float | None = None) -> dict[str, Attribute]:
    """Return what a node said of itself, by name in order.

    Args:
        received_s: our wall clock when the node said it: `measured_s` is then by our clock.  None keeps the sender's.

    Raises:
        RemoteProtocolError: malformed, beyond a limit, or a name that is also the beginning of another.
    """
    if len(data) > ATTRIBUTES_BYTES_MAX:
        raise RemoteProtocolError("too many bytes of attributes")
    match cbor.decode(data, allow_float=True):
        case [int() as now, dict() as body, *_] if type(now) is int and 0 <= now <= _WALL_MS_MAX:
            pass
        case _:
            raise RemoteProtocolError("not attributes")
    if len(body) > ATTRIBUTES_MAX:
        raise RemoteProtocolError("too many attributes")
    wall_s = now / 1000 if received_s is None else received_s
    found: dict[str, Attribute] = {}
    try:
        for name in sorted(check_name(name) for name in body):
            found[name] = _attribute(body[name], wall_s)
    except ValueError as error:
        raise RemoteProtocolError(str(error)) from error
    for name in found:
        parts = name.split(".")
        if any(".".join(parts[:count]) in found for count in range(1, len(parts))):
            raise RemoteProtocolError("an attribute that is also a group of others")
    return found


def _attribute(item: Any, wall_s: float) -> Attribute:
    value, age, lifetime, accuracy = listed(item, 4, "attribute")
    if type(age) is not int or not 0 <= age <= _WALL_MS_MAX:
        raise ValueError("not the age of an attribute")
    if lifetime is not None and not (type(lifetime) is int and 0 <= lifetime <= ATTRIBUTE_LIFETIME_S_MAX * 1000):
        raise ValueError("not the lifetime of an attribute")
    if accuracy is not None and not (type(accuracy) is float and math.isfinite(accuracy) and accuracy >= 0):
        raise ValueError("not the accuracy of an attribute")
    return Attribute(
        check_value(value),
        measured_s=wall_s - age / 1000,
        lifetime_s=None if lifetime is None else lifetime / 1000,
        accuracy=accuracy,
    )


def age_s(attribute: Attribute, wall_s: float) -> float:
    """Return how long ago it was measured, at least 0."""
    return max(0.0, wall_s - attribute.measured_s)


def is_believed(attribute: Attribute, wall_s: float, age_s_max: float | None = None) -> bool:
    """Return whether it may still be believed.

    Args:
        age_s_max: how old a value that changes (with a lifetime) may be; static ones may have any age.
    """
    if attribute.lifetime_s is None:
        return True
    limit_s = attribute.lifetime_s if age_s_max is None else min(attribute.lifetime_s, age_s_max)
    return age_s(attribute, wall_s) <= limit_s


def values(attributes: Attributes, wall_s: float, age_s_max: float | None = None) -> dict[str, Value]:
    """Return the values that may be believed, as expressions see them; the others are unknown."""
    return {name: item.value for name, item in attributes.items() if is_believed(item, wall_s, age_s_max)}
