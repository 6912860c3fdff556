"""Which container engines there are, and what each must do before it is believed to work here.

Imported by worker processes: imports nothing.
"""

from __future__ import annotations

APPTAINER = ("apptainer", "--quiet", "exec", "--containall", "--net", "--network", "none")
"""How it starts a container; not every user may have it leave the network away."""
TRIALS: dict[str, tuple[str, ...]] = {
    "podman": ("podman", "--version"),  # it has no daemon that might not run; info takes a second
    "docker": ("docker", "info", "--format", "{{.ServerVersion}}"),
    "apptainer": (*APPTAINER, "/", "/bin/true"),
}
"""Engine → words that succeed where it works, in the order in which they are chosen."""
