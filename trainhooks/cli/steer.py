"""The command that steers tokens."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from trainhooks.cli.base import Flag, Positive, Several, command, refuse_beside_over
from trainhooks.cli.model_on_text import ModelOnText
from trainhooks.cli.progress import working
from trainhooks.core.printable import say


@command
def steer(
    model: str,
    *,
    reading: ModelOnText,
    tokens: Annotated[tuple[str, ...], Several] = (),
    pick: Annotated[int, Positive] = 20,
    ratios: Annotated[tuple[float, ...], Several] = (0.05, 0.2, 0.5, 2.0, 5.0, 10.0, 20.0),
    direction: Annotated[tuple[str, ...], Several] = (),
    positions: Annotated[int, Positive] = 8192,
    counts: Path | None = None,
    untie: Flag = False,
    save: Path | None = None,
    json: Flag = False,
) -> None:
    """Multiply tokens' probabilities by edits of their output embeddings, beside the references that could do as well.

    Documents are split in two halves: one gives slope and scale, the other every figure printed.

    Parameters
    ----------
    model
        A folder or a hub id of a causal language model.
    reading
        Which text is read, and with which weights: the options of `ModelOnText`.
    tokens
        Tokens to steer, as text (" the") or as the vocabulary spells them; by default picked by frequency.
    pick
        How many to pick where none are named, the commonest included.
    ratios
        What to multiply by.
    direction
        Some of elementwise, saliency, least_norm, least_spread, logit_bias, random_norm, random_shift; by default all.
    positions
        Positions in each half.
    counts
        A file of token counts, for the frequency bins; by default the labels of the text are counted.
    untie
        Edit the output side only where the input embedding is the same matrix.
    save
        Write the edited model there (tokens named, one ratio, one direction; tokens are steered together).
    json
        Print JSON instead of text; a figure that is not defined is null.

    Examples
    --------
    trainhooks steer model/ --text held_out.txt
    trainhooks steer model/ --text held_out.txt --tokens " the" " and" --ratios 0.5 2
    trainhooks steer model/ --text held_out.txt --tokens " the" --ratios 2 --direction saliency --save steered/
    """
    from trainhooks.intervene.steering.directions import BASELINES, SOLVED

    edits = {"tokens": tokens or pick, "ratios": ratios, "directions": direction or (*SOLVED, *BASELINES)}
    with working(f"steering {model}"):
        if reading.over is not None:
            refuse_beside_over({"--save": save, "--step": reading.step, "--counts": counts})
        where = reading.where(positions=positions)
        found = _found(model, reading, where, edits, {"counts": counts, "untie": untie, "save": save})
    say(json_format.dumps(found.to_dict(), indent=2) if json else found.render(), end="\n" if json else "")


def _found(
    model: str, reading: ModelOnText, where: dict[str, Any], edits: dict[str, Any], alone: dict[str, Any]
) -> Any:
    """The report of one model, which takes what is in `alone`, or the curve of a series."""
    from trainhooks.intervene.along_training import moments, steer_along
    from trainhooks.intervene.steering.report import check_steering, run_steering

    if reading.over is None:
        return run_steering(model, step=reading.step, **where, **edits, **alone)
    check_steering(ratios=edits["ratios"], directions=edits["directions"])
    return steer_along(moments(model, over=reading.over, **where), **edits, seed=reading.seed)
