"""All formats, in the order in which a folder is held against them."""

from __future__ import annotations

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.dcp import DISTRIBUTED
from trainhooks.checkpoints.formats.deepspeed import DEEPSPEED
from trainhooks.checkpoints.formats.deepspeed_universal import UNIVERSAL
from trainhooks.checkpoints.formats.deepspeed_zero3 import ZERO_3
from trainhooks.checkpoints.formats.format import Folder, Format
from trainhooks.checkpoints.formats.gguf_file import GGUF
from trainhooks.checkpoints.formats.hugging_face import HUGGING_FACE
from trainhooks.checkpoints.formats.megatron_core import MEGATRON_CORE
from trainhooks.checkpoints.formats.megatron_lm import MEGATRON_LM
from trainhooks.checkpoints.formats.meta_llama import META
from trainhooks.checkpoints.formats.nanotron import NANOTRON
from trainhooks.checkpoints.formats.neox_layers import NEOX_LAYERS
from trainhooks.checkpoints.formats.single_file import SINGLE_FILE
from trainhooks.checkpoints.formats.tensorstore_arrays import OCDBT, ZARR_ARRAYS
from trainhooks.checkpoints.weight_files import may_be_weights

FORMATS: tuple[Format, ...] = (
    HUGGING_FACE,
    MEGATRON_CORE,
    DISTRIBUTED,
    NEOX_LAYERS,
    UNIVERSAL,
    ZERO_3,
    DEEPSPEED,
    META,
    NANOTRON,
    SINGLE_FILE,
    GGUF,
    MEGATRON_LM,
    OCDBT,
    ZARR_ARRAYS,
)
DEPTH = 2  # folders down that are looked into: step100/checkpoint/model_and_optim
MOST_FOLDERS = {2: 64, 1: 16}  # of one folder, by the folders that may follow: each takes a listing


def located(folder: Folder) -> tuple[Format, Folder] | None:
    """The format of a checkpoint's folder, and the folder that its weights lie in: this one, or the one below it, at
    most two down, whose format is certain by its names. None where there is none.

    Folders of optimizers and links to folders are not looked into. Raises CheckpointError where several could be it.
    """
    for form in FORMATS:
        if form.fits(folder):
            return form, folder
    found = _below(folder, depth=DEPTH)
    if len(found) > 1:
        names = ", ".join(path for path, _, _ in found[:8])
        raise CheckpointError(
            f"{folder.name} holds no weights itself; {names} below it do. Give the path of one that holds the whole "
            "model."
        )
    return found[0][1:] if found else None


def _below(folder: Folder, *, depth: int) -> list[tuple[str, Format, Folder]]:
    """Folders below that hold weights, by their path from here; under one that does nothing is looked for."""
    found: list[tuple[str, Format, Folder]] = []
    for name in [name for name in folder.folders if may_be_weights(name) and name[:1] != "."][: MOST_FOLDERS[depth]]:
        inner = folder.below(name)
        form = next((form for form in FORMATS if form.is_certain and form.fits(inner)), None)
        if form is not None:
            found.append((name, form, inner))
        elif depth > 1:
            further = _below(inner, depth=depth - 1)
            found += [(f"{name}/{path}", form, place) for path, form, place in further]
    return found
