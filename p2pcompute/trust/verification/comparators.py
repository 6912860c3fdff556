"""When two outputs count as the same: both sides reduce an output to a digest, and digests are compared.

    exact         the bytes of the output
    rounded:N     canonical CBOR of a value whose floats were rounded to N significant decimal digits

The comparator belongs to the identity of a task: a claim under another one is a claim about another task.

Rounding keeps "the same" transitive, which a tolerance is not.  Its price: two values that differ by a part d of a
rounding step fall on two sides of a step with probability d.  For sums in another order d is about 10^(N-16) times
the number of operations, so that N up to about 10 costs next to no conflicts; one that happens costs a trusted run.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Final, Self

from p2pcompute.errors import UsageError
from p2pcompute.trust.verification.book import Digest
from p2pcompute.wire import cbor

DIGITS_MAX: Final = 15
"""Significant decimal digits that every double has."""


@dataclass(frozen=True, slots=True)
class Comparator:
    """How outputs of a task are compared."""

    digits: int | None = None
    """Significant decimal digits of floats that count; None: all bytes do."""

    def __str__(self) -> str:
        return "exact" if self.digits is None else f"rounded:{self.digits}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the comparator with this name.

        Raises:
            UsageError: there is none.
        """
        name, _, digits = text.partition(":")
        if text == "exact":
            return cls()
        if name == "rounded" and digits.isascii() and digits.isdecimal() and 1 <= int(digits[:3]) <= DIGITS_MAX:
            return cls(int(digits[:3]))
        raise UsageError(
            f'outputs cannot be compared by "{text}"',
            f"it is exact, or rounded:N with 1 to {DIGITS_MAX} digits",
            "for example: rounded:9",
            code="comparator",
        )

    def digest(self, output: Any) -> Digest:
        """Return the digest of an output.

        Args:
            output: its bytes, or with `digits` a value that canonical CBOR can hold.

        Raises:
            LocalProtocolError: canonical CBOR cannot hold it.
        """
        data = output if self.digits is None else cbor.encode(_rounded(output, self.digits))
        return hashlib.blake2b(data, digest_size=32, person=b"p2pc output").digest()


def _rounded(value: Any, digits: int) -> Any:
    match value:
        case float():
            # 0.0 + turns -0.0 into 0.0; not-a-number is one value, whatever its bits.
            return 0.0 + float(f"{value:.{digits - 1}e}") if math.isfinite(value) else _SPECIAL[str(value)]
        case list() | tuple():
            return [_rounded(item, digits) for item in value]
        case dict():
            return {key: _rounded(item, digits) for key, item in value.items()}
        case _:
            return value


_SPECIAL: Final = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
