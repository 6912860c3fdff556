"""Shell completion: Click's scripts for bash, zsh and fish."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from p2pcompute.cli.asking import ask
from p2pcompute.cli.command import Command, yes_option
from p2pcompute.cli.output import say
from p2pcompute.errors import UsageError


def _script(shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(click.get_current_context().find_root().command, {}, "p2pc", "_P2PC_COMPLETE").source()


def _place(shell: str) -> Path:
    """Return the file that the shell reads by itself (bash: bash-completion 2, fish), or one to name in .zshrc."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    match shell:
        case "bash":
            return data / "bash-completion/completions/p2pc"
        case "fish":
            return config / "fish/completions/p2pc.fish"
    return data / "zsh/site-functions/_p2pc"


@click.command(
    cls=Command,
    examples=[("source <(p2pc completion bash)", "now, in this shell"), ("p2pc completion --install", "for good")],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), required=False)
@click.option("--install", is_flag=True, help="Write it where the shell finds it; shows the file first.")
@yes_option
def completion(shell: str | None, install: bool, yes: bool) -> int:
    """Shell completion script."""
    shell = shell or Path(os.environ.get("SHELL", "")).name
    if shell not in ("bash", "zsh", "fish"):
        raise UsageError(
            f"no completion for the shell {shell or 'of this session'!r}",
            "there is one for bash, zsh and fish",
            "p2pc completion bash",
        )
    script = _script(shell)
    if not install:
        click.echo(script)
        return 0
    path = _place(shell)
    print(f"{path} will hold:\n\n{script}\n", file=sys.stderr)
    if not yes:
        ask("Write it?", needs="writing it needs a yes", otherwise="nothing was written")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script + "\n", encoding="utf-8")
    say(f"wrote {path}; it works in new shells")
    if shell == "zsh":
        say(f"zsh: add to .zshrc, before compinit:  fpath=({path.parent} $fpath)")
    return 0
