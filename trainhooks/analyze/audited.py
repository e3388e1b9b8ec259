"""What an audit leaves of a suite: which checkpoints are sound, and whether they are one run."""

from __future__ import annotations

from dataclasses import dataclass

from trainhooks.checkpoints.audit.audit import Audit, audit_suite
from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.suite import Suite

MOST_FINDINGS = 50


class SuiteInDoubt(CheckpointError):
    """A suite that may not be one run in this order: what the audit found, and how to go on all the same."""

    def __init__(self, name: str, found: Audit) -> None:
        told = "; ".join(f"{finding.kind}: {finding.message}" for finding in found.doubts[:3])
        more = f"; and {len(found.doubts) - 3} more" if len(found.doubts) > 3 else ""
        super().__init__(
            f"{name} may not be one run in this order: {told}{more}. Choose the steps that are (steps=, --steps), or "
            "go on with all that is not left out (keep_going=True, --keep-going); `trainhooks audit` says more."
        )


@dataclass(frozen=True)
class AuditedSuite:
    """What was `found`, None without an audit."""

    found: Audit | None

    @property
    def broken(self) -> dict[int, str]:
        """The steps that are left out, and why."""
        return {} if self.found is None else {s: f"step {s}: {reason}" for s, reason in self.found.broken.items()}

    @property
    def attributes(self) -> dict[str, object]:
        """What the store keeps of it: the doubtful findings first, at most 50."""
        if self.found is None:
            return {}
        findings = sorted(self.found.findings, key=lambda finding: not finding.doubtful)[:MOST_FINDINGS]
        kept = [
            {"kind": o.kind, "steps": list(o.steps[:MOST_FINDINGS]), "message": o.message, "doubtful": o.doubtful}
            for o in findings
        ]
        return {"audit": kept}


def audited(suite: Suite, *, head: str | None, audit: bool, keep_going: bool, strict: bool) -> AuditedSuite:
    """Audit a suite before it is analyzed.

    Raises SuiteInDoubt where it may not be one run in this order, unless one shall `keep_going`; with `strict`
    CheckpointError where a checkpoint cannot be read.
    """
    if not audit:
        return AuditedSuite(None)
    found = audit_suite(suite, head=head)
    if found.doubts and not keep_going:
        raise SuiteInDoubt(suite.name, found)
    unread = [finding.message for finding in found.findings if finding.kind in ("unreadable", "no weights")]
    if strict and unread:
        raise CheckpointError(f"{suite.name}: {'; '.join(unread[:3])}. Leave `strict` out to go on without them.")
    return AuditedSuite(found)
