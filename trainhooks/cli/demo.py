"""The command that pretrains a small model with everything on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from trainhooks.cli.base import Flag, Positive, Several, command


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

    Examples
    --------
    trainhooks demo
    trainhooks demo --out runs/mine --corpus texts/ --steps 1000
    trainhooks demo --size 14m --loop lightning --device cuda --checkpoints
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
