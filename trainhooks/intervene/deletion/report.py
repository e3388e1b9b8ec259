"""Deleting dimensions from a model's name and text to a report: the whole of `trainhooks prune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainhooks.core.formatting import finite
from trainhooks.intervene.contexts import collect_contexts, read_documents, split_documents
from trainhooks.intervene.deletion.orders import ORDERS
from trainhooks.intervene.deletion.prune import (
    Pruning,
    check_code,
    check_savable,
    code_labels,
    prune,
    pruned_target,
    token_mask_of,
)
from trainhooks.intervene.deletion.variants import VARIANTS
from trainhooks.intervene.early_checks import check_model, check_names
from trainhooks.intervene.generation import GenerationScore, draw_prompts, score_generation, unmodified_text
from trainhooks.intervene.target import Target, load_target


@dataclass(frozen=True)
class Saved:
    """Which deletion is written or generates: `code` (variant/order) at a `fraction` of the dimensions.

    `folder`: where the model goes, None: nowhere. `samples`: how many texts it writes, None: none. `untie`: with an
    input embedding of its own where it is the same matrix.
    """

    code: str = "zero/ascending"
    fraction: float = 0.3
    folder: Path | None = None
    samples: int | None = None
    untie: bool = False

    @property
    def asked(self) -> bool:
        """Whether anything is to be done with it."""
        return self.folder is not None or self.samples is not None


@dataclass(frozen=True)
class PruningReport:
    """What `trainhooks prune` says: curves and gains; `score` of the texts that the model as saved writes."""

    pruning: Pruning
    tied: bool
    saved: Saved
    score: GenerationScore | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; a figure that is not defined is None."""
        found = self.pruning.to_dict()
        if self.score is not None:
            found["generation"] = {"code": self.saved.code, "fraction": self.saved.fraction} | asdict(self.score)
        cleaned: dict[str, Any] = finite(found)
        return cleaned

    def render(self) -> str:
        """The table, what is to be known of it, and the score."""
        lines = [self.pruning.render()]
        if self.tied:
            lines.append("The input embedding is the same matrix; the figures above are for the output side alone.")
        if self.score is not None:
            how = f"{self.saved.code} at {self.saved.fraction:g}"
            lines.append(f"{how}, the model as saved, generates {self.score.render()}")
        return "\n".join(lines) + "\n"


def check_pruning(*, orders: Sequence[str], variants: Sequence[str]) -> None:
    """Raises ValueError for an order or a variant that there is not."""
    check_names("order", orders, known=ORDERS)
    check_names("variant", variants, known=VARIANTS)


def run_pruning(
    model: str | Path,
    *,
    text: Sequence[str | Path],
    orders: tuple[str, ...] = ORDERS,
    variants: tuple[str, ...] = VARIANTS,
    random: int = 10,
    js_bound: float = 0.02,
    loss_bound: float = 0.05,
    store: str | Path | None = None,
    step: int | None = None,
    tokenizer: str | Path | None = None,
    context_length: int = 128,
    max_positions: int = 4096,
    seed: int = 0,
    saved: Saved = Saved(),
) -> PruningReport:
    """Delete dimensions of a model's output embedding on text; see `prune` and `Saved`.

    Raises ValueError as `load_target`, `read_documents`, `split_documents`, `collect_contexts` and `prune` do; all
    that can be is found before the model is loaded.
    """
    check_pruning(orders=orders, variants=variants)
    known = code_labels(orders, variants, random=random, seed=seed)
    if saved.asked:
        check_code(saved.code, fraction=saved.fraction, known=known)
    parts = split_documents(read_documents(text), seed=seed)
    check_model(model)
    target = load_target(model, store=store, step=step, tokenizer=tokenizer)
    if saved.asked:
        check_savable(target, code=saved.code, fraction=saved.fraction, known=known)
    generated = None if saved.samples is None else _Generated(target, parts[1], saved.samples, context_length, seed)
    calibration, test = (
        collect_contexts(target, part, context_length=context_length, max_positions=max_positions, seed=seed)
        for part in parts
    )
    found = prune(
        target.weight,
        calibration=calibration,
        test=test,
        bias=target.bias,
        mask=token_mask_of(target),
        orders=orders,
        variants=variants,
        random=random,
        js_bound=js_bound,
        loss_bound=loss_bound,
        seed=seed,
    )
    score = None
    if saved.asked:
        edited = pruned_target(target, found, code=saved.code, fraction=saved.fraction, untie=saved.untie)
        score = None if generated is None else generated.score(edited)
        if saved.folder is not None:
            edited.save(saved.folder)
    return PruningReport(found, target.tied, saved, score)


class _Generated:
    """Texts of the unmodified model, made before the long part: they may be refused."""

    def __init__(self, target: Target, documents: Sequence[str], samples: int, context_length: int, seed: int) -> None:
        prompts = draw_prompts(target, documents, samples=samples, context_length=context_length, seed=seed)
        self._model = target.model
        self._reference = unmodified_text(target.model, prompts, length=context_length - prompts.shape[1])

    def score(self, edited: Target) -> GenerationScore:
        """Of what the edited model writes after the same beginnings."""
        return score_generation(self._model, edited.model, reference=self._reference)
