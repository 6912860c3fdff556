"""Every parser that others' bytes reach, with some hundred wrong inputs each; `python3 dev.py fuzz` gives them more."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import Mutator
from tests.fuzz.surfaces import SURFACES, attack


@pytest.mark.parametrize("name", SURFACES)
@settings(max_examples=150)
@given(seed=st.integers(0, 2**32))
def test_wrong_bytes_raise_only_what_is_documented(name: str, seed: int) -> None:
    """Anything else would be a bug that a stranger can set off: logged as ours, and perhaps a way in."""
    attack(SURFACES[name], Mutator(seed))


@pytest.mark.parametrize("name", SURFACES)
@given(data=st.binary(max_size=200))
def test_any_bytes_raise_only_what_is_documented(name: str, data: bytes) -> None:
    attack(SURFACES[name], Mutator(0), data)
