"""For tests that need sandboxes."""

from __future__ import annotations

import pytest

from p2pcompute.execution.sandbox import NoSandbox
from p2pcompute.execution.sandbox_trial import try_sandbox


def need_sandbox() -> None:
    """Skip the test where no sandbox works, with the reason and what helps."""
    try:
        try_sandbox()
    except NoSandbox as error:
        pytest.skip(f"runs where sandboxes work: {error}; {error.fix or 'apt-get install bubblewrap'}")
