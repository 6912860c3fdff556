"""Pool policies by name.  If these fail, a plugin is not found, or a wrong name stops a node without a word."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from p2pcompute.daemon.policies import find_policy
from p2pcompute.errors import ConfigError
from p2pcompute.scheduler.policies import POLICIES, Element, LeastUsed


def test_policies_that_come_along() -> None:
    assert find_policy("") is None and find_policy("round-robin") is None
    assert isinstance(find_policy("least-used"), LeastUsed)
    with pytest.raises(ConfigError) as error:
        find_policy("least")
    assert all(name in str(error.value.why) for name in POLICIES)


def test_policies_of_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backwards.py").write_text(
        "class Backwards:\n"
        "    def order(self, elements, rng):\n"
        "        return list(reversed(elements))\n"
        "    def selected(self, element):\n"
        "        pass\n"
    )
    info = tmp_path / "backwards-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: backwards\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[p2pc.policies]\nbackwards = backwards:Backwards\nbroken = nowhere:Gone\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    policy = find_policy("backwards")
    assert policy is not None
    elements = [Element(b"a"), Element(b"b")]
    assert policy.order(elements, random.Random(1)) == elements[::-1]
    with pytest.raises(ConfigError, match="broken"):
        find_policy("broken")
    sys.modules.pop("backwards", None)
