"""One step's output embedding as a file of its own."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np

from trainhooks.store.format.layout import SNAPSHOT
from trainhooks.store.reading.reader import Store

FORMATS = ("safetensors", "npy")
_OTHERS = frozenset(
    (".pt", ".pth", ".bin", ".ckpt", ".npz", ".pkl", ".pickle", ".gguf", ".h5", ".zarr", ".csv", ".json")
)


def export_step(store: Store, *, step: int, out: str | Path, form: str | None = None) -> Path:
    """Write the float32 matrix [vocab, dim] of `step` to the file `out`, whole or not at all; returns its path.

    `form` is "safetensors" (a tensor "output_embedding", and step and precision as metadata) or "npy"; None goes by
    the name's suffix, and takes safetensors where it has none that is known.

    Raises ValueError for another form, a name that promises another one, or a step without a matrix; OSError where
    `out` is there or cannot be written.
    """
    out = Path(out)
    form = _form_of(out, form)
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

                about = {"step": str(step), "precision": str(store.precision), "source": store.where}
                file.write(save({SNAPSHOT: matrix}, metadata=about))
        temporary.replace(out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return out


def _form_of(out: Path, form: str | None) -> str:
    suffix = out.suffix.lower()
    promised = suffix.removeprefix(".") if suffix.removeprefix(".") in FORMATS else None
    form = form or promised or FORMATS[0]
    if form not in FORMATS:
        raise ValueError(f"format {form!r} is not known; use one of {', '.join(FORMATS)}.")
    if suffix in _OTHERS or promised not in (None, form):
        raise ValueError(f"{out} would hold {form}, and its name says {suffix}. Call it {out.with_suffix('.' + form)}.")
    return form
