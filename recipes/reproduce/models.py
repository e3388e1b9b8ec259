"""Models that nobody here trained: probe, sparsity, steering and deletion of the heads that packages ship."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from commands import silent, trainhooks
from measure import rounded, sparsity

MANY_ROWS, POSITIONS, FEW_POSITIONS = 16_384, 4096, 1024  # a distribution over a large vocabulary costs as much more


def real_models(folder: Path, text: Sequence[Path], out: Path) -> dict[str, Any]:
    """Every folder in `folder` with weights and a tokenizer, held against the counts of `text` under that tokenizer."""
    places = [whole(place, out) for place in sorted(folder.iterdir()) if place.is_dir()]
    names = [place.name for place in places]
    if len(set(names)) < len(names):
        raise ValueError(f"two models in {folder} have one name ({', '.join(names)}): rename one.")
    return {place.name: real_model(place, text, out) for place in places}


def whole(place: Path, out: Path) -> Path:
    """The folder itself; of one that holds a GGUF file alone, that file dequantised to float32 under `out`."""
    quantised = sorted(place.glob("*.gguf"))
    if any(place.glob("*.safetensors")) or not quantised:
        return place
    folder = out / quantised[0].stem
    if not any(folder.glob("*.safetensors")):  # they are written last
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(place, gguf_file=quantised[0].name, dtype="float32")
        model.hf_quantizer = None  # its weights are plain by now, but transformers would refuse to save them
        del model.config.quantization_config
        AutoTokenizer.from_pretrained(place, gguf_file=quantised[0].name).save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def real_model(place: Path, text: Sequence[Path], out: Path) -> dict[str, Any]:
    """One model: the text is not what it was trained on, which the page says."""
    tokenizer = tokenizer_of(place, out / f"{place.name}-tokenizer.json")
    counts = out / f"{place.name}-counts.npz"
    silent("count", *text, "--tokenizer", tokenizer, "--out", counts, "--overwrite")
    found = trainhooks("probe", next(place.glob("*.safetensors")), "--counts", counts, "--tokenizer", tokenizer)
    positions = FEW_POSITIONS if found["rows"] > MANY_ROWS else POSITIONS
    where = ("--text", *text, "--tokenizer", tokenizer, "--positions", positions)
    steer = trainhooks("steer", place, *where, "--ratios", 2, 5)
    prune = trainhooks("prune", place, *where, "--variant", "zero", "compensated")
    return {
        "rows": found["rows"],
        "dim": found["dim"],
        "positions": positions,
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
    """Median of |log(achieved / ratio)| over the edits of one direction that were feasible."""
    edits = [edit for edit in found["steering"]["edits"] if edit["direction"] == way and edit["feasible"]]
    return float(np.median([abs(np.log(edit["achieved"] / edit["requested"])) for edit in edits]))


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
