"""What the reports of benchmarks have in common: of which commit they are, and where they go."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def commit() -> str | None:
    """The commit of the work tree, if there is one."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        asked = ["git", "rev-parse", "HEAD"]
        here = Path(__file__).resolve().parent
        return subprocess.run(asked, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    return None


def write(document: Mapping[str, Any], output: Path | None) -> None:
    """Write a report into a file, or print it."""
    text = json.dumps(document, indent=2) + "\n"
    if output is not None:
        output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def conclude(report: Mapping[str, Any], directory: Path) -> int:
    """Print a report, and remove the homes of its nodes unless it has `problems`; return the exit code."""
    write(report, None)
    if report["problems"]:
        print(f"the homes are in {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    return 0
