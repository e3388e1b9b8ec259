"""Euclidean norms of many tensors at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from trainhooks.numerics.segments import gathered_sums, segment_sums

HOST_PIECE = 1 << 16
_PART = 1 << 21
_SUMMED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def accumulator(device: torch.device) -> torch.dtype:
    """The widest float a device adds in: float64, float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def squared_norms(tensors: Sequence[Tensor]) -> Float[Tensor, "tensor"]:
    """The squared Euclidean norm of each tensor, on the first one's device; 0 for an empty tensor.

    Fused over tensors of one dtype and device. Half precision is read as float32. On the host float32 is summed in
    pieces of 65,536 elements and the pieces in float64: `torch.linalg.vector_norm` keeps a single float32 sum there
    and was off by 0.2% at 38 million elements. NaN and inf give NaN and inf.
    """
    if not tensors:
        return torch.zeros(0, dtype=accumulator(torch.device("cpu")))
    pieces = [_pieces(tensor.detach()) for tensor in tensors]
    squares = _piece_norms([piece for held in pieces for piece in held], tensors[0].device).square()
    return segment_sums(squares, tuple(map(len, pieces)))


def group_norms(groups: Mapping[str, Sequence[Tensor]]) -> Float[Tensor, "group"]:
    """The exact Euclidean norm of each group of parameters, in their order; 0 for an empty group.

    A tensor that stands in several groups is read once. See `squared_norms` for precision.
    """
    tensors, members = unique_tensors(groups)
    return gathered_sums(squared_norms(tensors), members).sqrt()


def unique_tensors(groups: Mapping[str, Sequence[Tensor]]) -> tuple[list[Tensor], list[list[int]]]:
    """Each tensor once, by identity, and for each group the indices of its tensors."""
    tensors = list({id(tensor): tensor for held in groups.values() for tensor in held}.values())
    position = {id(tensor): index for index, tensor in enumerate(tensors)}
    return tensors, [list(dict.fromkeys(position[id(tensor)] for tensor in held)) for held in groups.values()]


def _pieces(tensor: Tensor) -> list[Tensor]:
    if tensor.device.type != "cpu" or tensor.dtype == torch.float64:
        return [tensor]
    return list(tensor.reshape(-1).split(HOST_PIECE))


def _piece_norms(pieces: list[Tensor], device: torch.device) -> Float[Tensor, "piece"]:
    kinds = _by_kind(pieces)
    norms = [torch.stack(list(_norms_of_kind([pieces[i] for i in indices]))) for indices in kinds]
    wide = [of_kind.to(device, accumulator(device)) for of_kind in norms]
    if len(kinds) == 1:
        return wide[0]
    found = dict(zip((i for indices in kinds for i in indices), torch.cat(wide).unbind(), strict=True))
    return torch.stack([found[i] for i in range(len(pieces))])


def _norms_of_kind(pieces: list[Tensor]) -> Sequence[Tensor]:
    half = pieces[0].dtype in (torch.float16, torch.bfloat16)
    if half and pieces[0].device.type == "cpu":
        # one at a time: all of them as float32 would be a second model. `vector_norm` adds in sequence, and values of
        # few bits all round one way there (7e-6 at 65,536 elements); `sum` adds in pairs
        return [piece.float().square().sum().sqrt() for piece in pieces]
    return torch._foreach_norm(pieces, 2, torch.float32 if half else None)


def _by_kind(pieces: list[Tensor]) -> list[list[int]]:
    """Indices of pieces by dtype and device: the fused kernel takes one kind at a time."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, piece in enumerate(pieces):
        kinds.setdefault((piece.dtype, piece.device), []).append(index)
    return list(kinds.values())


def all_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite."""
    # in parts: a mask of the whole tensor would be one more copy; a sum is finite only where its terms are
    parts = tensor.flatten().split(_PART)
    summed = tensor.dtype in _SUMMED
    return all((summed and bool(part.sum().isfinite())) or bool(torch.isfinite(part).all()) for part in parts)


def ratio(value: Float[Tensor, "*shape"], norm: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """value / norm, and NaN (never inf) where the norm is 0."""
    return torch.where(norm > 0, value / norm, torch.full_like(value, float("nan")))
