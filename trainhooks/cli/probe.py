"""The command on one matrix: the frequency probe with all that it stands against."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from trainhooks.cli.base import Flag, Positive, Several, command
from trainhooks.cli.progress import working
from trainhooks.core.printable import say


@command
def probe(
    source: Path,
    *,
    step: int | None = None,
    key: str | None = None,
    counts: Path | None = None,
    tokenizer: Path | None = None,
    vocab_size: Annotated[int | None, Positive] = None,
    min_count: Annotated[int | None, Positive] = None,
    exclude: Annotated[tuple[int, ...], Several] = (),
    draws: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 99,
    seen: Flag = False,
    json: Flag = False,
) -> None:
    """Probe one output embedding for token frequency, beside the nulls and baselines that give it meaning.

    One matrix of 50304 x 768 takes some 10 seconds on two cores, and minutes more for the sparsity's rotations,
    whose cost grows with the cube of the width (with draws at 0 sparsity is left out); memory is five copies of it.

    Parameters
    ----------
    source
        A Zarr store made by a recorder, a model's folder, a .npy file with one matrix, or a .safetensors file.
    step
        Which of a store's matrices; by default the last.
    key
        Which tensor of a .safetensors file or a model; by default the only matrix, or the one known as the head.
    counts
        Token counts (.npz, .npy or .csv); by default the store's.
    tokenizer
        A tokenizer.json, for the baseline of token covariates; by default the store's token texts.
    vocab_size
        The tokenizer's size: rows from this id on are padding.
    min_count
        Fit tokens counted this often or more; by default the run's own setting, else 1.
    exclude
        Ids left out of the fit, besides those that the run left out.
    draws
        Rotations and random orders that stand beside the sparsity; 0 leaves sparsity out.
    seen
        Hold the matrix against the labels that the model was trained on up to that step, not against the corpus.
    json
        Print JSON instead of text; a figure that is not defined is null.

    Examples
    --------
    trainhooks probe run.zarr
    trainhooks probe run.zarr --step 300 --draws 0 --json
    trainhooks probe model.safetensors --counts counts.npz --tokenizer tokenizer.json
    """
    from trainhooks.probe_report import report_source

    with working(f"probing {source}"):
        report = report_source(
            source,
            step=step,
            key=key,
            counts=counts,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            min_count=min_count,
            exclude=exclude,
            draws=draws,
            seen=seen,
        )
    say(json_format.dumps(report.to_dict(), indent=2) if json else report.render(), end="\n" if json else "")
