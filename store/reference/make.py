"""Make the reference store: a real run, small enough to commit, and the numbers that a reader must find in it.

    python store/reference/make.py store/reference/v1

A GPT-NeoX of two layers (width 32, 512 tokens) is trained for 40 updates on the source of Python's standard library.
Weights differ in their last bits between machines, so the store is committed, and not remade by a test.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import trainhooks as th
from trainhooks.demo.corpus import load_corpus, windows

STEPS = 40
EXPECTED = (
    "loss",
    "probe.heldout_spearman",
    "probe.heldout_r2",
    "spectrum.stable_rank",
    "convergence.distance_to_final",
)


def main(folder: Path) -> None:
    """Train, record, and write down what the store holds."""
    corpus = load_corpus(vocab_size=512, max_bytes=2_000_000)
    vocab_size = corpus.counts.vocab_size
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=65, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = iter(DataLoader(windows(corpus, 65, seed=0), batch_size=16))
    store = folder / "run.zarr"
    with th.Recorder(
        model, store=store, counts=corpus.counts, precision="bfloat16", mode="overwrite",
        token_texts=corpus.token_texts, total_steps=STEPS,
        provenance={"command": f"python store/reference/make.py {folder}"},
    ) as recorder:  # fmt: skip
        for _ in range(STEPS):
            ids = next(batches)
            recorder.begin_step(ids[:, 1:])
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            recorder.after_update(loss=loss, learning_rate=3e-3)
    kept = th.open_store(store)
    metrics = {name: kept[name] for name in EXPECTED}
    expected = {
        "steps": kept.steps.tolist(),
        "snapshot_steps": kept.snapshot_steps.tolist(),
        "groups": list(kept.groups),
        "shape": list(kept.output_embedding(STEPS).shape),
        "matrix_sums": {str(step): float(kept.output_embedding(step).sum(dtype="float64")) for step in (0, 20, STEPS)},
        "token_path_sum": float(kept.token_path(7).sum(dtype="float64")),
        "labels_seen": int(kept.label_counts(STEPS).sum()),
        "metrics_at_20": {name: metrics[name][20].tolist() for name in EXPECTED},
        "corpus_hash": kept.attributes["corpus_hash"],
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
