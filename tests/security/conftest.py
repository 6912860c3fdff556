"""Real daemons for attacks."""

from __future__ import annotations

from tests.e2e.conftest import mesh, pytest_runtest_makereport, short_path

__all__ = ["mesh", "pytest_runtest_makereport", "short_path"]
