"""The command that deletes dimensions."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from trainhooks.cli.base import Flag, Positive, Several, command, refuse_beside_over
from trainhooks.cli.model_on_text import ModelOnText
from trainhooks.cli.progress import working
from trainhooks.core.printable import say


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ToSave:
    """Which deletion is written or generates.

    Parameters
    ----------
    fraction
        Of the dimensions to delete in the model that is saved or generates.
    code
        Which deletion is saved or generates: variant/order, as the table names them.
    generate
        Let the model as it would be saved, and the unmodified one, write this many texts (3 seeds each) after
        beginnings of the test documents, to the context's length: MAUVE, distinct-2 and repetition. Refused where
        unmodified against unmodified text has a MAUVE below 0.9. Needs the extra generation. Costs 6 x this many x
        context_length tokens of the model (300 texts of 128 tokens: 30 seconds of one core with 260K parameters).
    untie
        Save with an input embedding of its own where it is the same matrix; otherwise it loses the same dimensions.
    save
        Write the pruned model there.
    """

    fraction: float = 0.3
    code: str = "zero/ascending"
    generate: Annotated[int | None, Parameter(validator=validators.Number(gte=20))] = None
    untie: Flag = False
    save: Path | None = None


@command
def prune(
    model: str,
    *,
    reading: ModelOnText,
    to_save: ToSave = ToSave(),
    order: Annotated[tuple[str, ...], Several] = (),
    variant: Annotated[tuple[str, ...], Several] = (),
    random: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 10,
    js_bound: float = 0.02,
    loss_bound: float = 0.05,
    positions: Annotated[int, Positive] = 4096,
    json: Flag = False,
) -> None:
    """Delete dimensions of the output embedding in every order, and say how many can go and what saliency gains.

    Documents are split in two halves: one gives orders and what stands in, the other every figure printed.

    Parameters
    ----------
    model
        A folder or a hub id of a causal language model.
    reading
        Which text is read, and with which weights: the options of `ModelOnText`.
    to_save
        Which deletion is written or generates: the options of `ToSave`.
    order
        Some of ascending, descending, unique, norm, logit_variance; by default all.
    variant
        Some of zero, context_mean, compensated; by default all.
    random
        Random orders beside them.
    js_bound
        Jensen-Shannon divergence that is allowed, nats.
    loss_bound
        Change of loss that is allowed, nats.
    positions
        Positions in each half.
    json
        Print JSON instead of text; a figure that is not defined is null.

    Examples
    --------
    trainhooks prune model/ --text held_out.txt
    trainhooks prune model/ --text held_out.txt --variant zero --random 4 --json
    trainhooks prune model/ --text held_out.txt --code zero/ascending --fraction 0.3 --save pruned/
    """
    from trainhooks.intervene.deletion.orders import ORDERS
    from trainhooks.intervene.deletion.variants import VARIANTS

    options = {"orders": order or ORDERS, "variants": variant or VARIANTS, "random": random}
    options |= {"js_bound": js_bound, "loss_bound": loss_bound}
    with working(f"pruning {model}"):
        found = _found(model, reading, reading.where(positions=positions), options, to_save)
    say(json_format.dumps(found.to_dict(), indent=2) if json else found.render(), end="\n" if json else "")


def _found(model: str, reading: ModelOnText, where: dict[str, Any], options: dict[str, Any], to_save: ToSave) -> Any:
    """The report of one model, or the curve of a series."""
    from trainhooks.intervene.along_training import moments, prune_along
    from trainhooks.intervene.deletion.report import Saved, check_pruning, run_pruning

    if reading.over is None:
        saved = Saved(to_save.code, to_save.fraction, to_save.save, to_save.generate, to_save.untie)
        return run_pruning(model, step=reading.step, saved=saved, **where, **options)
    refuse_beside_over({"--save": to_save.save, "--step": reading.step, "--generate": to_save.generate})
    check_pruning(orders=options["orders"], variants=options["variants"])
    return prune_along(moments(model, over=reading.over, **where), **options, seed=reading.seed)
