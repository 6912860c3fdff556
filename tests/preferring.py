"""A job's fit that prefers nodes and takes all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preferring:
    """Prefers the nodes whose keys begin so."""

    beginning: bytes = b""
    has_preference = True

    def may_have(self, _key: bytes, _installation: bytes) -> bool:
        return True

    def is_candidate(self, _key: bytes) -> bool | None:
        return True

    def look_further(self) -> None: ...

    def rank(self, key: bytes) -> float | None:
        return float(key.startswith(self.beginning))

    def slots(self, _key: bytes, _slot_count: int) -> int:
        return 1

    def known_here(self) -> bool | None:
        return True

    async def fits_here(self) -> bool:
        return True
