"""Commands on runs: the demo, what a store holds, and the verdict on it."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from trainhooks.cli.base import Flag, Positive, Several, command
from trainhooks.shown import say


@command
def demo(
    *,
    out: Path = Path("store/runs/demo"),
    steps: Annotated[int | None, Positive] = None,
    size: Literal["tiny", "14m", "70m", "160m"] = "tiny",
    corpus: Annotated[list[Path] | None, Several] = None,
    loop: Literal["plain", "lightning", "transformers"] = "plain",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    checkpoints: Flag = False,
) -> None:
    """Pretrain a small language model with everything on, and say what its output embedding learnt when.

    Parameters
    ----------
    out
        Folder for the store, the TensorBoard events and the trained model; what an earlier demo left is overwritten.
    steps
        Optimizer updates; by default the size's own (300 for tiny).
    size
        tiny for a CPU (minutes on two cores); the others have Pythia's shapes, for a GPU.
    corpus
        Text files or folders; by default the source of Python's standard library.
    loop
        Which training loop to plug into.
    device
        auto takes a GPU where there is one.
    seed
        Of the initial weights and of the data order.
    checkpoints
        Save whole models too, at steps 0, 1, 2, 4 ... and the last: a suite for analyze, steer and prune.
    """
    from trainhooks.demo.run import run_demo

    run_demo(
        out=out,
        steps=steps,
        size=size,
        corpus_paths=corpus,
        loop=loop,
        device=device,
        seed=seed,
        checkpoints=checkpoints,
    )


@command
def inspect(store: str, *, json: Flag = False) -> None:
    """Say what is in a store: steps, matrices, metrics, sizes, provenance.

    Parameters
    ----------
    store
        A Zarr store made by a recorder.
    json
        Print JSON instead of text.
    """
    from trainhooks.store import open_store
    from trainhooks.summary import print_summary

    summary = open_store(store).summary()
    if json:
        say(json_format.dumps(summary, indent=2))
    else:
        print_summary(summary)


@command
def verdict(
    store: Path,
    *more: Path,
    q: Annotated[tuple[float, ...], Several] = (0.5, 0.9),
    draws: Annotated[int, Parameter(validator=validators.Number(gte=19))] = 99,
    max_records: Annotated[int | None, Parameter(validator=validators.Number(gte=3))] = None,
    json: Flag = False,
) -> None:
    """Say whether token frequency came before the rest, beside the references that could explain it away.

    Parameters
    ----------
    store
        A Zarr store made by a recorder.
    more
        Further seeds of the same model.
    q
        Shares of the way at which onsets are read.
    draws
        Labellings of each null, 19 or more.
    max_records
        Thin longer runs to this many log-spaced records.
    json
        Print JSON instead of text.
    """
    from trainhooks.runs import analyze_store
    from trainhooks.verdict import verdict as make_verdict

    analyses = [analyze_store(path, q=q, draws=draws, max_records=max_records) for path in (store, *more)]
    result = make_verdict(analyses)
    say(json_format.dumps(result.to_dict(), indent=2) if json else result.render())
