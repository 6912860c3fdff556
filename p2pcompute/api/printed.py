"""What a task has printed, line by line, while it runs and afterwards."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from p2pcompute.host.runs import Outcome

if TYPE_CHECKING:
    from p2pcompute.node.facade import TailView

Stream = Literal["stdout", "stderr", "both"]
LOOK_S: Final = 0.5
"""Between two questions to the node where a task runs."""


@dataclass(slots=True)
class _Reading:
    """One of the two streams of one attempt."""

    position: int = 0
    """Bytes that were read or passed over."""
    rest: str = ""
    """A line that has not ended."""
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def take(self, start: int, data: bytes) -> list[str]:
        """Return the lines that are whole now.

        Args:
            start: where `data` begins in all that was printed.
        """
        new = data[max(0, self.position - start) :]
        self.position = max(self.position, start + len(data))
        *lines, self.rest = (self.rest + self.decoder.decode(new)).split("\n")
        return lines

    def last(self) -> list[str]:
        rest, self.rest = self.rest, ""
        return [rest] if rest else []


def printed_lines(
    stream: Stream,
    *,
    is_done: Callable[[], bool],
    outcome: Callable[[], Outcome | None],
    tail: Callable[[int, int, int], TailView | None],
    follow: bool,
) -> Iterator[str]:
    """Yield lines without their ends; of a task that has printed much, those of the last 64 KiB.

    Args:
        outcome: of the task when it has ended.
        tail: asks the node where it runs for what comes after (attempt, bytes of stdout, bytes of stderr).
        follow: go on until the task has ended; else what there is now.
    """
    names = ("stdout", "stderr") if stream == "both" else (stream,)
    attempt, readings = 0, {name: _Reading() for name in ("stdout", "stderr")}
    while not is_done():
        found = tail(attempt, readings["stdout"].position, readings["stderr"].position)
        if found is not None:
            if found.attempt != attempt:
                if attempt:
                    readings = {name: _Reading() for name in readings}
                attempt = found.attempt
            for name in names:
                yield from readings[name].take(getattr(found, f"{name}_start"), getattr(found, name))
        if not follow:
            break
        time.sleep(LOOK_S)
    ended = outcome() if is_done() else None
    for name in names:
        if ended is not None:
            data: bytes = getattr(ended, name)
            blob: tuple[bytes, int] | None = getattr(ended, f"{name}_blob")
            yield from readings[name].take((len(data) if blob is None else blob[1]) - len(data), data)
        yield from readings[name].last()
