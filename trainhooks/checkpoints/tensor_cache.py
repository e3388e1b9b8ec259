"""Tensors and headers fetched from a hub, kept on this machine by the place they came from and their own content.

What a hub lists as a file's hash is its word, not proof: a repository may list another's. So a tensor is served again
for the very place it was fetched from (hub, repository, commit, file), with the hash of its bytes verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.safetensors_file import safetensors_tensors
from trainhooks.checkpoints.sources.byte_source import LocalFile

KEY, CONTENT = "tensor", "sha256"
DIGEST_BYTES = 32


@dataclass(frozen=True)
class TensorCache:
    """One safetensors file a tensor under `folder`, named by its origin and key; renamed into place when whole.

    `origin` is the file's address at a fixed commit, its size and the hash that the hub lists; beside the tensor
    stands the SHA-256 of its bytes, taken when it was fetched and compared each time it is served.

    The beginning of each file that was opened lies there too, in a file of its own.

    Not bounded: it grows by each tensor that is asked for (a head of 50304 x 768 in float16 is 77 MB), and any of
    it may be deleted at any time. What is there and does not fit the entry is fetched anew.
    """

    folder: Path

    @classmethod
    def default(cls) -> TensorCache:
        """`trainhooks/tensors` in huggingface_hub's home (HF_HOME, else ~/.cache/huggingface)."""
        from huggingface_hub import constants

        return cls(Path(constants.HF_HOME) / "trainhooks" / "tensors")

    def path(self, origin: str, *, key: str) -> Path:
        """Where a tensor of the file from this place lies, or would."""
        return self._place(f"{origin}\n{key}", suffix=".safetensors")

    def _place(self, what: str, *, suffix: str) -> Path:
        name = hashlib.sha256(what.encode(errors="surrogatepass")).hexdigest()
        return self.folder / name[:2] / f"{name}{suffix}"

    def get(self, origin: str, *, entry: TensorEntry) -> Tensor | None:
        """The tensor, mapped; None where it is not here, or what is here has another shape, dtype or content."""
        path = self.path(origin, key=entry.key)
        try:
            found = safetensors_tensors(LocalFile.open(path), file=path.name)
            stored, kept = found[KEY], found[CONTENT].read()
            if (stored.entry.shape, stored.entry.dtype) != (entry.shape, entry.dtype):
                return None
            tensor = stored.read()
            return tensor if torch.equal(kept, _content(tensor)) else None
        except (CheckpointError, KeyError):
            return None

    def put(self, origin: str, *, key: str, tensor: Tensor) -> None:
        """Keep a tensor. Raises OSError where the folder cannot be written."""
        whole = tensor.contiguous()
        kept = {KEY: whole, CONTENT: _content(whole)}
        _renamed(self.path(origin, key=key), write=lambda temporary: save_file(kept, temporary))

    def get_bytes(self, origin: str) -> bytes | None:
        """The beginning of the file from this place; None where it is not here or has been altered."""
        with contextlib.suppress(OSError):
            held = self._place(origin, suffix=".begin").read_bytes()
            digest, found = held[:DIGEST_BYTES], held[DIGEST_BYTES:]
            return found if digest == hashlib.sha256(found).digest() else None
        return None

    def put_bytes(self, origin: str, begin: bytes) -> None:
        """Keep the beginning of a file, after the SHA-256 of what is kept; where there is no room it is not kept."""
        held = hashlib.sha256(begin).digest() + begin
        with contextlib.suppress(OSError):
            _renamed(self._place(origin, suffix=".begin"), write=lambda temporary: temporary.write_bytes(held))


def _renamed(path: Path, *, write: Callable[[Path], object]) -> None:
    """A file made under another name beside `path`, and renamed when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _content(tensor: Tensor) -> Tensor:
    """SHA-256 of a contiguous tensor's bytes, as 32 bytes."""
    digest = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).digest()
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)
