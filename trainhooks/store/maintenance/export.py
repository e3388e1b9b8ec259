"""One step's output embedding as a file of its own."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np

from trainhooks.store.format.layout import SNAPSHOT
from trainhooks.store.reading.reader import Store

FORMATS = ("safetensors", "npy")


def export_step(store: Store, *, step: int, out: str | Path, form: str = "safetensors") -> Path:
    """Write the float32 matrix [vocab, dim] of `step` to the file `out`, whole or not at all; returns its path.

    `form` is "safetensors" (a tensor "output_embedding", and step and precision as metadata) or "npy".

    Raises ValueError for another form or a step without a matrix, OSError where `out` is there or cannot be written.
    """
    if form not in FORMATS:
        raise ValueError(f"format {form!r} is not known; use one of {', '.join(FORMATS)}.")
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} is there already. Choose a new path.")
    matrix = np.ascontiguousarray(store.output_embedding(step))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}-{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("xb") as file:
            if form == "npy":
                np.save(file, matrix, allow_pickle=False)
            else:
                from safetensors.numpy import save

                about = {"step": str(step), "precision": str(store.precision), "source": str(store.path)}
                file.write(save({SNAPSHOT: matrix}, metadata=about))
        temporary.replace(out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return out
