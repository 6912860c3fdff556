"""Entry point of the console script: small, so that Ctrl-C while the rest is imported ends it like any other."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """Run the command line of this process; exit code 130 after Ctrl-C, whenever it came."""
    try:
        from p2pcompute.cli.main import main as run

        run()
    except KeyboardInterrupt:
        import os

        os._exit(130)  # EXIT_INTERRUPTED; nothing was begun that would have to end
