"""Formats of one file: by its suffix, and in a folder where it is the only one that holds weights."""

from __future__ import annotations

import re

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.gguf_file import OF_SEVERAL, gguf_contents
from trainhooks.checkpoints.formats.gguf_file import SUFFIX as GGUF_SUFFIX
from trainhooks.checkpoints.formats.safetensors_file import safetensors_tensors
from trainhooks.checkpoints.formats.safetensors_shards import joined_safetensors
from trainhooks.checkpoints.formats.torch_zip import torch_zip_tensors
from trainhooks.checkpoints.sources.byte_source import ByteSource
from trainhooks.checkpoints.weight_files import may_be_weights

SAFETENSORS = ".safetensors"
TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
IN_ORDER: tuple[tuple[str, ...], ...] = ((SAFETENSORS,), TORCH_SUFFIXES)
RANKS = "shard-"
OF_MANY = re.compile(r".+-\d{5}-of-(?!00001\b)\d{5}\.\w+")


def file_contents(source: ByteSource, *, file: str) -> Contents:
    """What one file holds, in the format that its suffix says; `file` is the name that entries carry."""
    doubt = OF_SEVERAL if OF_MANY.fullmatch(file) else ""
    if file.endswith(SAFETENSORS):
        return Contents(safetensors_tensors(source, file=file), doubt=doubt)
    if file.endswith(TORCH_SUFFIXES):
        return Contents(torch_zip_tensors(source, file=file, strict=file.endswith(".bin")), doubt=doubt)
    if file.endswith(GGUF_SUFFIX):
        return gguf_contents(source, file=file)
    known = ", ".join(suffix for suffixes in (*IN_ORDER, (GGUF_SUFFIX,)) for suffix in suffixes)
    raise CheckpointError(f"{source.name}: wanted a file ending in {known}.")


def _candidates(folder: Folder) -> list[str]:
    """The files that hold the weights: of the first suffixes that there are, without what only resuming needs."""
    for suffixes in IN_ORDER:
        named = [name for name in sorted(folder.files) if name.endswith(suffixes) and not name.startswith(".")]
        if weights := [name for name in named if may_be_weights(name)]:
            return weights
    return []


def _read(folder: Folder) -> Contents:
    named = _candidates(folder)
    if all(name.startswith(RANKS) and name.endswith(SAFETENSORS) for name in named):
        joined = joined_safetensors({name: folder.open(name) for name in named})
        if joined is not None:
            return Contents(joined)
    if len(named) > 1:
        raise CheckpointError(f"{folder.name} holds {', '.join(named[:8])} and no index: give one file's path.")
    return file_contents(folder.open(named[0]), file=named[0])


SINGLE_FILE = Format("one file", lambda folder: bool(_candidates(folder)), _read, is_certain=False)
