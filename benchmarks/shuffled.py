"""Can the verdict say no: the same model on real text, on shuffled text, and on text without frequencies.

    python benchmarks/shuffled.py --steps 300 --seeds 0 1 2

Trains the demo's tiny model with the same settings on three streams of token ids, and prints what the lead test says
of each, always with the real corpus counts as targets:

- `text`: the corpus as it is.
- `shuffled`: the same ids in a random order (one permutation of the whole corpus): no context, every frequency kept.
- `uniform`: ids drawn alike: neither context nor frequency, so that a lead found here would be an artefact.

On shuffled text frequency is all there is to learn, so that a lead there is no artefact. Real text against shuffled
text is an effect size: the ratio of their excess leads, with an interval over three seeds or more of each.

Needs `trainhooks[transformers]`; about 1.5 s a step and stream with one thread, and 2 MB of disk for each of them.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_ind

from trainhooks.demo.corpus import load_corpus, windows
from trainhooks.demo.loops import Training, train_plain
from trainhooks.demo.models import PRESETS, build_model
from trainhooks.lead.from_store import analyze_store
from trainhooks.lead.verdict import verdict
from trainhooks.store import open_store

STREAM_SEED = 0
LEAST_SEEDS = 3


def streams(corpus):
    """The three corpora by name; the tokenizer and the counts are those of the text in all of them."""
    rng = np.random.default_rng(STREAM_SEED)
    uniform = rng.integers(corpus.counts.vocab_size, size=len(corpus.ids), dtype=corpus.ids.dtype)
    return {
        "text": corpus,
        "shuffled": dataclasses.replace(corpus, ids=rng.permutation(corpus.ids)),
        "uniform": dataclasses.replace(corpus, ids=uniform),
    }


def train(corpus, path, *, steps, seed):
    """One run of the demo's tiny model, every output embedding kept; returns its store."""
    preset = PRESETS["tiny"]
    batch = preset.batch_tokens // preset.context
    training = Training(
        steps=steps,
        batch=batch,
        learning_rate=preset.learning_rate,
        warmup=min(preset.warmup, max(1, steps // 4)),
        weight_decay=preset.weight_decay,
    )
    vocab_size = corpus.counts.vocab_size
    model = build_model("tiny", vocab_size=vocab_size, seed=seed, context=preset.context)
    data = windows(corpus, preset.context, seed=seed, minimum=batch)
    hooks = {"store": path, "counts": corpus.counts, "vocab_size": vocab_size, "metrics": [], "precision": "bfloat16"}
    train_plain(model, data, training, {**hooks, "mode": "overwrite"})
    return open_store(path)


def change(store):
    """The share of the final change's square along the targets, and in its leading direction; both in [0, 1]."""
    counts = np.asarray(store.token_counts)
    keep = counts > 0
    moved = (store.snapshots[len(store.snapshots) - 1] - store.snapshots[0])[keep].astype(np.float64)
    moved -= moved.mean(axis=0)
    y = np.log(counts[keep])
    y = (y - y.mean()) / np.linalg.norm(y - y.mean())
    energy = np.linalg.eigvalsh(moved.T @ moved)
    return float(np.square(y @ moved).sum() / energy.sum()), float(energy[-1] / energy.sum())


def entropy(counts):
    """Entropy of the token frequencies in nats: the least loss where context says nothing."""
    p = np.asarray(counts, dtype=np.float64)
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum())


def rows(name, seed, store, analysis):
    """Lines of the table, one a share q."""
    loss = store["loss"]
    along, leading = change(store)
    for lead in analysis.leads:
        yield [
            name,
            str(seed),
            f"{loss[np.isfinite(loss)][-10:].mean():.2f}",
            f"{along:.2f}",
            f"{leading:.2f}",
            f"{analysis.correlation:.2f}",
            f"{analysis.change_over_noise:.1f}",
            f"{lead.q:g}",
            f"{lead.lead:.3f}",
            f"{lead.excess.value:.3f}",
            f"{lead.p:.2f}",
            f"{lead.frequency.step:.1f}",
            f"{lead.rest.step:.1f}",
        ]


def against_shuffled(text, shuffled):
    """Ratio of the excess leads on text and on shuffled text, with Welch's 95% interval over the seeds, as words."""
    logs = [np.log([run.leads[0].excess.value for run in runs]) for runs in (text, shuffled)]
    if min(map(len, logs)) < LEAST_SEEDS or not np.isfinite(np.concatenate(logs)).all():
        return f"text against shuffled text: needs {LEAST_SEEDS} seeds of each, all with a lead"
    with_lead = ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    ratio, low, high = np.exp([logs[0].mean() - logs[1].mean(), with_lead.low, with_lead.high])
    return f"excess lead on text / on shuffled text: {ratio:.3g}, 95% {low:.3g}-{high:.3g} over {len(text)} seeds"


def main():
    """Train, analyse, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--streams", nargs="+", choices=["text", "shuffled", "uniform"], default=None)
    parser.add_argument("--out", type=Path, help="keep the stores in this folder (default: a temporary one)")
    args = parser.parse_args()
    console = Console(width=150)
    corpus = load_corpus(vocab_size=PRESETS["tiny"].vocab_size, progress=False)
    console.print(f"{len(corpus.ids)} tokens, entropy of their frequencies {entropy(corpus.counts.counts):.2f} nats")
    table = Table(
        *["stream", "seed", "loss", "along y", "leading", "c", "sd above", "q", "lead", "excess", "p"],
        *["frequency", "rest"],
        box=None,
    )
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, data in streams(corpus).items():
            if args.streams and name not in args.streams:
                continue
            analyses = found[name] = []
            for seed in args.seeds:
                store = train(data, (args.out or Path(folder)) / f"{name}-{seed}.zarr", steps=args.steps, seed=seed)
                analyses.append(analyze_store(store))
                for line in rows(name, seed, store, analyses[-1]):
                    table.add_row(*line)
            console.print(f"{name}: {verdict(analyses).sentence}", highlight=False)
    console.print(table)
    if {"text", "shuffled"} <= set(found):
        console.print(against_shuffled(found["text"], found["shuffled"]), highlight=False)


if __name__ == "__main__":
    main()
