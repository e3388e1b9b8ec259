"""The options of commands that read text with a model: steer and prune."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from trainhooks.cli.base import Several


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOnText:
    """Which text is read, and with which weights.

    Parameters
    ----------
    text
        Text files, .jsonl files or folders of them; fewer than 8 plain files are cut into documents at blank lines.
    store
        A Zarr store whose output embedding replaces the model's head.
    step
        Which of the store's matrices; by default the last.
    tokenizer
        A tokenizer.json where the model has none.
    context_length
        Tokens a window.
    seed
        Of the split, the windows, what is random and the intervals.
    over
        Steps to go along, all or as in 0,1,2,4 or 0:300:50: MODEL is a folder of whole models step{N}, or with
        --store the body that each of the store's output embeddings is put in. Prints figures against the step; each
        step costs a whole run.
    """

    text: Annotated[tuple[Path, ...], Several]
    store: Path | None = None
    step: int | None = None
    tokenizer: Path | None = None
    context_length: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 128
    seed: int = 0
    over: str | None = None

    def where(self, *, positions: int) -> dict[str, Any]:
        """What one model and a series of them are both told."""
        return {
            "text": self.text,
            "store": self.store,
            "tokenizer": self.tokenizer,
            "context_length": self.context_length,
            "max_positions": positions,
            "seed": self.seed,
        }
