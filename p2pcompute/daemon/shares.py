"""What part of this machine is for the work of others in one group, where it is in several.

Each group has a node of its own.  A node says how much its group counts (`node.weight`), sees which of the others run,
and takes its part of the sum.  Who is alone has all of it.
"""

from __future__ import annotations

import json
import os
from typing import Final

from p2pcompute.places import Paths, find_paths, groups_here

WEIGHT_FILE: Final = "weight"


def share_of(paths: Paths, weight: float) -> float:
    """Return the part of the cores, from 0 to 1, and let the other groups' nodes know our weight."""
    _say(paths, weight)
    others = sum(_weight_of(find_paths(group=name)) for name in groups_here(paths.base) if name != paths.group)
    return weight / (weight + others) if weight + others > 0 else 0.0


def _say(paths: Paths, weight: float) -> None:
    file = paths.state / WEIGHT_FILE
    text = f"{weight:g}\n"
    try:
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    except (OSError, ValueError):
        return  # the others take us for one of weight 1


def _weight_of(paths: Paths) -> float:
    """Return the weight of another group's node; 0 when it does not run."""
    try:
        os.kill(int(json.loads(paths.run_file.read_text(encoding="utf-8"))["pid"]), 0)
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
    try:
        return max(0.0, float((paths.state / WEIGHT_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return 1.0
