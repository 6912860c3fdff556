"""Whether results of nodes that are not trusted are right: how often each task is computed, and whom to believe.

Every method has the interface of `book.Verifier`: it says which task a worker gets, takes claims and verdicts, and
returns what follows.  `make_verifier` makes one by its name:

    arbitrate    commit, compare, arbitrate, ban, reopen (`arbitrate`)
    credibility  Sarmenta's credibility by known-answer checks, with and without blacklist (`checking`)
    spotcheck    known-answer checks alone, with and without blacklist (`checking`)
    majority     the first value with m votes (`voting`)
    boinc        BOINC's adaptive replication (`voting`)

Pure: time and randomness are passed in, nothing here does I/O.  `formulas` holds the arithmetic.

Source: Sarmenta, "Sabotage-tolerance mechanisms for volunteer computing systems", FGCS 18(4), 2002.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from p2pcompute.trust.verification.arbitrate import Arbitrate, ArbitratePolicy
from p2pcompute.trust.verification.book import Verifier
from p2pcompute.trust.verification.checking import Credibility, SpotCheck
from p2pcompute.trust.verification.voting import Adaptive, Majority

Method = Literal["arbitrate", "credibility", "spotcheck", "majority", "boinc"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)


def make_verifier(
    method: Method,
    *,
    error_rate: float = 1e-4,
    saboteurs: float = 0.2,
    checks: float = 0.1,
    has_blacklist: bool = True,
    votes: int = 2,
    policy: ArbitratePolicy | None = None,
) -> Verifier:
    """Return a verifier without tasks and workers.

    Args:
        error_rate: accepted probability that a result is wrong (`arbitrate`, `credibility`).
        saboteurs: assumed share of saboteurs, below 1/2 (`arbitrate`, `credibility`).
        checks: share of a worker's work that is known-answer checks (`spotcheck`, `credibility`).
        has_blacklist: who fails a check gets no more work; without it he comes back under a new name.
        votes: votes that decide (`majority`).
        policy: further settings of `arbitrate`; its `error_rate` and `saboteurs` count then.
    """
    match method:
        case "arbitrate":
            return Arbitrate(policy or ArbitratePolicy(error_rate=error_rate, saboteurs=saboteurs))
        case "credibility":
            return Credibility(error_rate=error_rate, saboteurs=saboteurs, checks=checks, has_blacklist=has_blacklist)
        case "spotcheck":
            return SpotCheck(checks=checks, has_blacklist=has_blacklist)
        case "majority":
            return Majority(votes)
        case "boinc":
            return Adaptive()
