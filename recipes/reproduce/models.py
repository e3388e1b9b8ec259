"""Models that nobody here trained: probe, sparsity, steering and deletion of the heads that packages ship."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from commands import silent, trainhooks
from measure import rounded, sparsity


def real_models(folder: Path, text: Sequence[Path], out: Path) -> dict[str, Any]:
    """Every folder in `folder` with weights and a tokenizer, held against the counts of `text` under that tokenizer."""
    return {place.name: real_model(place, text, out) for place in sorted(folder.iterdir()) if place.is_dir()}


def real_model(place: Path, text: Sequence[Path], out: Path) -> dict[str, Any]:
    """One model: the text is not what it was trained on, which the page says."""
    tokenizer = tokenizer_of(place, out / f"{place.name}-tokenizer.json")
    counts = out / f"{place.name}-counts.npz"
    silent("count", *text, "--tokenizer", tokenizer, "--out", counts)
    found = trainhooks("probe", next(place.glob("*.safetensors")), "--counts", counts, "--tokenizer", tokenizer)
    where = ("--text", *text, "--tokenizer", tokenizer, "--positions", 4096)
    steer = trainhooks("steer", place, *where, "--ratios", 2, 5)
    prune = trainhooks("prune", place, *where, "--variant", "zero", "compensated")
    return {
        "rows": found["rows"],
        "dim": found["dim"],
        "probe": {
            name: {key: rounded(found[name][key]) for key in ("r2", "heldout_r2", "heldout_spearman")}
            for name in ("probe", "permuted", "row_norm", "covariates")
            if found[name] is not None
        },
        "null_r2": rounded(found["null_r2"]),
        "sparsity": sparsity(found["sparsity"], dim=found["dim"]),
        "steering": {
            way: rounded(error(steer, way)) for way in ("saliency", "least_norm", "random_norm", "logit_bias")
        },
        "deletion": {variant: rounded(largest(prune, variant)) for variant in ("zero", "compensated")},
    }


def error(found: Mapping[str, Any], way: str) -> float:
    """Median of |achieved / ratio - 1| over the edits of one direction that were feasible."""
    edits = [edit for edit in found["steering"]["edits"] if edit["direction"] == way and edit["feasible"]]
    return float(np.median([abs(edit["achieved"] / edit["requested"] - 1) for edit in edits]))


def largest(found: Mapping[str, Any], variant: str) -> float:
    """The largest share that the best of the orders (none of them random) may delete."""
    codes = [code for code in found["codes"] if code["code"].startswith(f"{variant}/") and "random" not in code["code"]]
    return max(float(code["largest"]["value"]) for code in codes)


def tokenizer_of(place: Path, out: Path) -> Path:
    """The model's tokenizer.json; made from a list of [piece, score] (SentencePiece's BPE) where it has that."""
    path = next(path for path in sorted(place.glob("*.json")) if path.name.startswith("tok"))
    found = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found, dict):
        return path
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = {piece: number for number, (piece, _) in enumerate(found)}
    tokenizer = Tokenizer(models.BPE(pieces, merges(found), unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")  # a piece never runs over a line's end
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(out))
    return out


def merges(found: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """Pairs of known pieces that make a known piece, the best score first: the order in which BPE joins them."""
    known = {piece for piece, _ in found}
    scored = sorted((pair for pair in found if len(pair[0]) > 1), key=lambda pair: -pair[1])
    return [
        (piece[:cut], piece[cut:])
        for piece, _ in scored
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
