"""Where things are in a sandbox; for both sides of its wall."""

from __future__ import annotations

PLACE = "/p2pc"
"""The writable place of a sandbox: a tmpfs of its own."""
INBOX = "/in"
"""Files that the node puts there, read-only in the sandbox."""
BOUND = (("tmp", "/tmp"), ("shm", "/dev/shm"))
"""Directories of PLACE that are seen under another name, so that all share its limits."""
ENVIRONMENT = "/p2pc-env"
"""The Python environment of a job that has one, read-only."""
BARE = "/p2pc-python"
"""An environment without packages, in which the first process of a sandbox with an ENVIRONMENT starts: packages may run
code as soon as an interpreter of theirs begins (site's .pth files), and may be that interpreter (bin/python)."""
