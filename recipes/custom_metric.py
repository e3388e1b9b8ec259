"""Write a metric of your own, and record it beside the default ones: do rows of common tokens move first?

    python recipes/custom_metric.py --steps 300 --out store/runs/custom_metric

About three minutes on two CPU cores. Needs `pip install 'trainhooks[all]'`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from pretrain_plain import train
from shared_run import parse, prepare
from torch import Tensor

import trainhooks as th


class RowsMoved(th.Metric):
    """How far the output embedding's rows are from where they began: the `common` most frequent, and the others.

    Both are means of |E_w(t) - E_w(0)| over rows; tokens that never occur are left out.
    """

    variables = (
        th.Variable("rows_moved.common", description="mean distance to record 0, the commonest tokens' rows"),
        th.Variable("rows_moved.others", description="the same for the other tokens that occur"),
    )
    needs = frozenset({"initial_head"})  # the recorder keeps a copy of the first record's matrix for this metric

    def __init__(self, counts: th.TokenCounts, *, common: int = 100) -> None:
        order = torch.from_numpy(counts.counts.copy()).argsort(descending=True, stable=True)
        self._common = order[:common]
        self._others = order[common : int((counts.counts > 0).sum())]

    def compute(self, state: th.State) -> Mapping[str, Tensor | float]:
        """Tensors on the model's device, in float32 or better; the recorder moves them to the host, later."""
        if state.initial_head is None:  # the first record
            return {"rows_moved.common": 0.0, "rows_moved.others": 0.0}
        moved = (state.output_embedding.float() - state.initial_head).norm(dim=1)
        device = moved.device
        return {
            "rows_moved.common": moved[self._common.to(device)].mean(),
            "rows_moved.others": moved[self._others.to(device)].mean(),
        }


def main(argv: list[str] | None = None) -> None:
    """Run from the command line."""
    run = prepare(parse(__doc__, argv=argv, loop="custom_metric"))
    counts = run.recorder["counts"]
    padded = counts.for_rows(run.model.get_output_embeddings().weight.shape[0], vocab_size=counts.vocab_size)
    metrics = [*th.default_metrics(padded), RowsMoved(counts)]
    run = replace(run, recorder={**run.recorder, "metrics": metrics})
    train(run)
    moved = th.open_store(run.store).metrics()
    common, others = (moved[f"rows_moved.{rows}"].values for rows in ("common", "others"))
    for share in (0.1, 0.3, 1.0):
        step = round(share * run.steps)
        print(f"step {step}: common rows have moved {common[step]:.2f}, the others {others[step]:.2f}")


if __name__ == "__main__":
    main()
