"""Why a job does not run, for programs and notebooks."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from p2pcompute.errors import NoEligibleNode

if TYPE_CHECKING:
    from p2pcompute.node.facade import ExplanationView


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that keeps a job from one node."""

    code: str
    """What it is about: an attribute like "has" or "mem", or on, local, python, accept, unreachable, busy."""
    node: str | None
    """Name of the node; None: of the job that runs, and why it is not done sooner."""
    what: str
    fix: str | None
    """What could be done at that node."""
    verdict: str = ""
    """What the node says because of it: later, never or unknown."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the nodes say to a job, as of the moment at which they were asked."""

    eligible: Sequence[str]
    """Names of the nodes that could run it now."""
    reasons: Sequence[Reason]
    """All of all other nodes, then those why it is not faster."""
    would_help: Sequence[str]
    """Changes of what the job asks for, as flags of `p2pc run`, each tried; the smallest first."""

    def __str__(self) -> str:
        if self == OVER:
            return self.reasons[0].what
        count = f"{len(self.eligible)} node{'s' * (len(self.eligible) != 1)} could run it now"
        counts = [f"{count}: {', '.join(self.eligible)}" if self.eligible else count]
        worst: dict[str, str] = {}
        for reason in self.reasons:
            if reason.node is not None:
                worst.setdefault(reason.node, reason.verdict)
        for verdict in ("later", "never", "unknown"):
            if names := [name for name, said in worst.items() if said == verdict]:
                counts.append(f"{len(names)} {verdict}: {', '.join(names)}")
        lines = ["; ".join(counts)]
        lines += [
            f"  {reason.node or 'not faster'}: {f'{reason.verdict}, ' * bool(reason.verdict)}{reason.what}"
            for reason in self.reasons
        ]
        lines += [f"  would help: {text}" for text in self.would_help]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """For notebooks."""
        if self == OVER:
            return f"<p>{self.reasons[0].what}</p>"
        rows = "".join(
            f"<tr><td>{html.escape(reason.node or '')}</td><td>{html.escape(reason.what)}</td>"
            f"<td>{html.escape(reason.fix or '')}</td></tr>"
            for reason in self.reasons
        )
        helps = "".join(f"<li>{html.escape(text)}</li>" for text in self.would_help)
        eligible = html.escape(", ".join(self.eligible)) or "none"
        table = f"<table><tr><th>node</th><th>because</th><th>fix</th></tr>{rows}</table>" if rows else ""
        return f"<p>nodes that could run it now: {eligible}</p>{table}" + (f"<ul>{helps}</ul>" if helps else "")


OVER: Final = Explanation(
    (), (Reason("over", None, "every call has ended", "see its status, failures() and plot()"),), ()
)
"""Of a job that nothing keeps any more."""


def explanation_of(view: ExplanationView) -> Explanation:
    """Return what nodes said, in public types."""
    report = view.report
    return Explanation(
        eligible=tuple(account.name for account in report.accounts if not account.findings),
        reasons=tuple(
            Reason(finding.code, account.name, finding.what, finding.fix or None, str(finding.verdict))
            for account in report.accounts
            for finding in account.findings
        )
        + tuple(Reason(one.code, None, one.what, one.fix or None) for one in view.slow),
        would_help=tuple(f"{one.what}: {one.effect}" for one in report.suggestions),
    )


def explanation_from(document: Mapping[str, Any]) -> Explanation:
    """Return what nodes said, of the answer of this machine's node (p2pc.explanation/1)."""
    return Explanation(
        eligible=tuple(node["name"] for node in document["nodes"] if not node["reasons"]),
        reasons=tuple(
            Reason(one["code"], node["name"], one["what"], one["fix"], one["verdict"])
            for node in document["nodes"]
            for one in node["reasons"]
        )
        + tuple(Reason(one["code"], None, one["what"], one["fix"]) for one in document["why_slow"]),
        would_help=tuple(f"{one['what']}: {one['effect']}" for one in document["would_help"]),
    )


def never(explanation: Explanation) -> NoEligibleNode:
    """Return the error of a job that no node will ever run."""
    why = "; ".join(f"{reason.node}: {reason.what}" for reason in explanation.reasons[:8])
    fix = explanation.would_help[0] if explanation.would_help else "add a node that can"
    error = NoEligibleNode("no node can ever run this", why, fix)
    error.explanation = explanation
    return error
