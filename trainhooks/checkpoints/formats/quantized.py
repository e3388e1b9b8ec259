"""What stands under a head's name and is no matrix of numbers (quantised, sharded, adapted): never passed over."""

from __future__ import annotations

from collections.abc import Mapping

from trainhooks.checkpoints.base import Checkpoint, CheckpointError, TensorEntry

FLOATS = ("float64", "float32", "float16", "bfloat16")
QUANTISED = (
    "scb", "absmax", "quant_state", "quant_map", "nested_", "weight_scale", "scale_inv", "scales", "qzeros", "g_idx",
    "zero_point", "weight_format", "qweight", "packed", "qdata", "codes", "codebook", "w_q",
)  # fmt: skip
"""What bitsandbytes, GPTQ, AWQ, compressed-tensors, torchao, MLX and HQQ put beside or in place of a weight."""
ADAPTERS = ("base_layer", "lora_", "hada_", "lokr_", "oft_", "vera_", "ia3_", "boft_", "hra_", "shira_", "miss_")


def refuse_unreadable(checkpoint: Checkpoint, leaves: Mapping[str, str]) -> None:
    """Raise CheckpointError where one of these keys says that the head cannot be read as a matrix of numbers.

    `leaves` are the checkpoint's keys under a head's name, each with what follows that name: `weight`, `qweight`, ...
    """
    for key, leaf in leaves.items():
        if what := _what_is_wrong(checkpoint.tensors[key], leaf.lower()):
            raise CheckpointError(f"{checkpoint.name}: {key} {what}.")


def _what_is_wrong(entry: TensorEntry, leaf: str) -> str:
    if entry.absent:
        return f"lies in {entry.file}, which is not there. Fetch that file"
    if entry.unreadable:
        return f"is there as {entry.unreadable}, which is not read. Save the whole tensor as plain numbers"
    if leaf.startswith(ADAPTERS):
        return "belongs to an adapter around the output embedding. Merge it into the model and save that"
    if any(word in leaf for word in QUANTISED) or (leaf in ("weight", "kernel") and entry.dtype not in FLOATS):
        return f"says that the output embedding is quantised ({entry.dtype}). Dequantise the model and save it"
    return ""
