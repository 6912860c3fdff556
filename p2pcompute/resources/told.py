"""Which applications other nodes were told that this one has, so that they hear when that is no longer so.  Pure.

Who asked keeps an answer for HAS_LIFETIME_S.  Within that time somebody may install or remove a program here, and a job
that waits for it would wait on.

Bounds: TOLD_MAX nodes, each with the words of its last questions, QUESTION_WORDS_MAX of them; whoever was told longest
ago goes, and believes what it was told until that is too old.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from p2pcompute.limits import QUESTION_WORDS_MAX, TOLD_MAX


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one node was told."""

    words: tuple[str, ...]
    """About what it asked, lately first."""
    there: frozenset[str]
    """What was said to be here: some of them, and runtimes."""
    until: float
    """It is believed until then at most, by our monotonic clock."""


class Told:
    """What one node has told others."""

    __slots__ = ("_by_key",)

    def __init__(self) -> None:
        self._by_key: dict[bytes, _Answer] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def note(self, key: bytes, words: Collection[str], there: Collection[str], until: float) -> None:
        """A node is told what of `words` is here.

        Args:
            there: those that are, and what else was said to be here.
            until: when it stops believing that, monotonic seconds.
        """
        before = self._by_key.pop(key, None)
        asked = dict.fromkeys([*words, *(() if before is None else before.words)])
        kept = tuple(asked)[:QUESTION_WORDS_MAX]
        old = () if before is None else (word for word in kept if word in before.there and word not in words)
        self._by_key[key] = _Answer(kept, frozenset([*there, *old]), until)
        if len(self._by_key) > TOLD_MAX:
            del self._by_key[next(iter(self._by_key))]

    def keep(self, now: float, is_reached: Callable[[bytes], bool]) -> None:
        """Forget those who believe it no longer, and those who cannot be told anything now."""
        self._by_key = {key: answer for key, answer in self._by_key.items() if now < answer.until and is_reached(key)}

    @property
    def words(self) -> list[str]:
        """Everything about which somebody was told something, each once, in order."""
        return sorted({word for answer in self._by_key.values() for word in (*answer.words, *answer.there)})

    def outdated(self, has: Mapping[str, bool]) -> list[tuple[bytes, tuple[str, ...]]]:
        """Return who was told what is not so now, and about what each had asked.

        Args:
            has: what is here now; of what it does not name nothing is known, and what was said holds.
        """
        return [
            (key, answer.words)
            for key, answer in self._by_key.items()
            if any(has.get(word, word in answer.there) != (word in answer.there) for word in self._about(answer))
        ]

    @staticmethod
    def _about(answer: _Answer) -> set[str]:
        return {*answer.words, *answer.there}
