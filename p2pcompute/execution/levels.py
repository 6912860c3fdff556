"""How far a task is kept from the machine it runs on."""

from __future__ import annotations

from enum import StrEnum


class Level(StrEnum):
    """Where a task runs.  Tasks of this installation's user always run at `process`."""

    NONE = "none"
    """Not at all."""
    WASM = "wasm"
    """WASI modules only, whose engine has shut itself in: where there is no sandbox."""
    PROCESS = "process"
    """In a process of the node's user: limits, a process group that ends as a whole, no sandbox."""
    SANDBOX = "sandbox"
    """In namespaces of its own, under no user of this machine, without the network."""
