"""What an analysis did, and what it left out and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainhooks.checkpoints.audit.audit import Audit
from trainhooks.core.formatting import shortened
from trainhooks.core.printable import page


@dataclass(frozen=True)
class AnalysisReport:
    """The outcome of `analyze`.

    `steps` were measured now, `resumed` stood in the store before; `left_out` (by the audit) and `failed` (when read
    or measured) are steps with reasons. `final_step` is what "to final" refers to. `notes` are caveats in words.
    """

    suite: str
    out: str
    final_step: int
    steps: tuple[int, ...]
    resumed: tuple[int, ...] = ()
    left_out: Mapping[int, str] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    audit: Audit | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, numbers and strings, ready for JSON."""
        return {
            "suite": self.suite,
            "out": self.out,
            "final_step": self.final_step,
            "steps": list(self.steps),
            "resumed": list(self.resumed),
            "left_out": {str(step): reason for step, reason in self.left_out.items()},
            "failed": {str(step): reason for step, reason in self.failed.items()},
            "notes": list(self.notes),
            "seconds": self.seconds,
            "audit": None if self.audit is None else self.audit.to_dict(),
        }

    def render(self) -> str:
        """The report as text, for a terminal."""
        lines = [f"{self.suite}: {len(self.steps)} checkpoints measured in {self.seconds:.1f} s, into {self.out}"]
        if self.steps:
            lines.append(f"steps {shortened(self.steps)}; final state: step {self.final_step}")
        if self.resumed:
            lines.append(f"{len(self.resumed)} stood in the store already: {shortened(self.resumed)}")
        lines += [f"- left out: {reason}" for reason in self.left_out.values()]
        lines += [f"- failed: step {step}: {reason}" for step, reason in self.failed.items()]
        return page([*lines, *(f"note: {note}" for note in self.notes)])
