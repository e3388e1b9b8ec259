"""The command that steers tokens."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from trainhooks.cli.base import Flag, Positive, Several, command, refuse_beside_over
from trainhooks.core.printable import say


@command
def steer(
    model: str,
    *,
    text: Annotated[tuple[Path, ...], Several],
    tokens: Annotated[tuple[str, ...], Several] = (),
    pick: Annotated[int, Positive] = 20,
    ratios: Annotated[tuple[float, ...], Several] = (0.05, 0.2, 0.5, 2.0, 5.0, 10.0, 20.0),
    direction: Annotated[tuple[str, ...], Several] = (),
    store: Path | None = None,
    step: int | None = None,
    tokenizer: Path | None = None,
    context_length: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 128,
    positions: Annotated[int, Positive] = 8192,
    seed: int = 0,
    counts: Path | None = None,
    over: str | None = None,
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
    text
        Text files, .jsonl files or folders of them; fewer than 8 plain files are cut into documents at blank lines.
    tokens
        Tokens to steer, as text (" the") or as the vocabulary spells them; by default picked by frequency.
    pick
        How many to pick where none are named, the commonest included.
    ratios
        What to multiply by.
    direction
        Some of elementwise, saliency, least_norm, least_spread, logit_bias, random_norm, random_shift; by default all.
    store
        A Zarr store whose output embedding replaces the model's head.
    step
        Which of the store's matrices; by default the last.
    tokenizer
        A tokenizer.json where the model has none.
    context_length
        Tokens a window.
    positions
        Positions in each half.
    seed
        Of the split, the windows, the random directions and the intervals.
    counts
        A file of token counts, for the frequency bins; by default the labels of the text are counted.
    over
        Steps to go along, all or as in 0,1,2,4 or 0:300:50: MODEL is a folder of whole models step{N}, or with
        --store the body that each of the store's output embeddings is put in. Prints errors against the step.
    untie
        Edit the output side only where the input embedding is the same matrix.
    save
        Write the edited model there (tokens named, one ratio, one direction; tokens are steered together).
    json
        Print JSON instead of text; a figure that is not defined is null.
    """
    from trainhooks.intervene.steering.directions import BASELINES, SOLVED
    from trainhooks.intervene.steering.report import run_steering

    where: dict[str, Any] = {
        "text": text,
        "store": store,
        "tokenizer": tokenizer,
        "context_length": context_length,
        "max_positions": positions,
        "seed": seed,
    }
    edits: dict[str, Any] = {
        "tokens": tokens or pick,
        "ratios": ratios,
        "directions": direction or (*SOLVED, *BASELINES),
    }
    found: Any
    if over is not None:
        from trainhooks.intervene.along_training import moments, steer_along

        refuse_beside_over({"--save": save, "--step": step, "--counts": counts})
        found = steer_along(moments(model, over=over, **where), **edits, seed=seed)
    else:
        found = run_steering(model, step=step, untie=untie, counts=counts, save=save, **where, **edits)
    say(json_format.dumps(found.to_dict(), indent=2) if json else found.render(), end="\n" if json else "")
