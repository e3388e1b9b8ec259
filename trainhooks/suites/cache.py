"""Tensors fetched from a hub, kept on this machine by the hash of the file they came from."""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from trainhooks.suites.base import CheckpointError, TensorEntry
from trainhooks.suites.ranges import LocalFile
from trainhooks.suites.safetensors_file import safetensors_tensors

KEY = "tensor"


@dataclass(frozen=True)
class TensorCache:
    """One safetensors file a tensor under `folder`, named by file hash and key; renamed into place when whole.

    Not bounded: it grows by each tensor that is asked for (a head of 50304 x 768 in float16 is 77 MB), and any of
    it may be deleted at any time. What is there and does not fit the entry is fetched anew.
    """

    folder: Path

    @classmethod
    def default(cls) -> TensorCache:
        """`trainhooks/tensors` in huggingface_hub's home (HF_HOME, else ~/.cache/huggingface)."""
        from huggingface_hub import constants

        return cls(Path(constants.HF_HOME) / "trainhooks" / "tensors")

    def path(self, digest: str, *, key: str) -> Path:
        """Where a tensor of the file with this hash lies, or would."""
        name = hashlib.sha256(f"{digest}/{key}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def get(self, digest: str, *, entry: TensorEntry) -> Tensor | None:
        """The tensor, mapped; None where it is not here, or what is here has another shape or dtype."""
        path = self.path(digest, key=entry.key)
        try:
            stored = safetensors_tensors(LocalFile.open(path), file=path.name)[KEY]
            if (stored.entry.shape, stored.entry.dtype) != (entry.shape, entry.dtype):
                return None
            return stored.read()
        except (CheckpointError, KeyError):
            return None

    def put(self, digest: str, *, key: str, tensor: Tensor) -> None:
        """Keep a tensor. Raises OSError where the folder cannot be written."""
        path = self.path(digest, key=key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            save_file({KEY: tensor.contiguous()}, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
