"""Convergence of chosen parameters from kept copies: exact where the sketches estimate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from trainhooks.core.errors import SettingsError
from trainhooks.core.schedule import Schedule
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric, State
from trainhooks.model import named_parameters
from trainhooks.model.distributed import RankGroup, gather_local, local_slice, local_tensor
from trainhooks.numerics.distances import squared_distances
from trainhooks.numerics.norms import ratio, squared_norms, unique_tensors
from trainhooks.numerics.segments import gathered_sums


def reference_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the copies that `ExactConvergence` keeps of these parameters: initial and previous, in their dtype."""
    unique = {id(tensor): tensor for tensor in tensors}
    return 2 * sum(tensor.numel() * tensor.element_size() for tensor in unique.values())


class ExactConvergence(Metric):
    """Norm, step and distance to initial of chosen parameters, exact, from copies kept in this object.

    Each of `groups` (names of `State.groups`) and each of `patterns` (globs on clean parameter names,
    "layers.*.attention*") is one entry of the dimension `exact`, in this order. The copies stay in the parameters'
    dtype on `device` (default: the host, pinned where the model is on CUDA, so that nothing waits); `reference_bytes`
    says how much they take. They are made at the first record computed, and the previous one moves on with every
    record: compute each record once. A store keeps sketches of these parameters, not their values, so a restart needs
    the copies: they are part of `state_dict`, which makes a checkpoint larger by `reference_bytes`, and a restarted run
    goes on as if it had never stopped. Where parameters are sharded each rank keeps copies of its own share;
    `state_dict` gathers them, one at a time, so that any number of ranks may go on. Where the first record seen is not
    step 0 and no state was loaded, the initial state is not known: what compares with it is NaN to the end, and what
    compares with the previous record is NaN at that one. Frozen parameters have step 0 and cosine 1; what divides by a
    norm of 0 is NaN.

    Raises ValueError where neither groups nor patterns are given, at the first record where one matches nothing, and
    at the first record after a restart where parameters have other shapes or types than those that were saved.
    """

    def __init__(
        self,
        groups: Sequence[str] = (),
        *,
        patterns: Sequence[str] = (),
        device: str | torch.device = "cpu",
        schedule: Schedule | None = None,
    ) -> None:
        if isinstance(groups, str) or isinstance(patterns, str):
            raise ValueError("groups and patterns are lists of names: wrap a single one in brackets.")
        if not groups and not patterns:
            raise ValueError("ExactConvergence follows nothing: name groups, or patterns such as layers.0.attention*.")
        self.groups, self.patterns = tuple(groups), tuple(patterns)
        self.device = torch.device(device)
        self.schedule = schedule
        self.variables = _declare((*self.groups, *self.patterns))
        self._initial: _Copy | None = None
        self._previous: _Copy | None = None
        self._shares: _Shares | None = None
        self._saved: dict[str, Any] = {}

    def compute(self, state: State) -> Mapping[str, Tensor | float]:
        """Float64 values [exact] on the parameters' device."""
        tensors, members = unique_tensors(self._select(state))
        self._shares = shares = _Shares(tensors, state.ranks)
        squares = shares.total(squared_norms(shares.held))
        norms = gathered_sums(squares, members).sqrt()
        values: dict[str, Tensor | float] = {"exact_convergence.norm": norms}
        self._restore(shares)
        if self._previous is None:
            self._previous = _Copy(shares, squares, self.device)
            self._initial = _Copy(shares, squares, self.device) if state.step == 0 else None
        else:
            apart, cosines, _ = self._previous.compare(shares, squares, members)
            step = ratio(apart, norms)
            values |= {"exact_convergence.relative_step": step, "exact_convergence.cosine_to_previous": cosines}
            if state.learning_rate_sum:
                values["exact_convergence.step_per_learning_rate"] = step / state.learning_rate_sum
            self._previous.update(shares, squares)
        if self._initial is not None:
            apart, cosines, initial_norms = self._initial.compare(shares, squares, members)
            values["exact_convergence.distance_to_initial"] = ratio(apart, initial_norms)
            values["exact_convergence.cosine_to_initial"] = cosines
        return values

    def kept_bytes(self, state: State) -> Mapping[str, int]:
        """What the copies take, on the host or on the device that was asked for."""
        tensors, _ = unique_tensors(self._select(state))
        held = [local_tensor(tensor) for tensor in tensors]
        return {"host" if self.device.type == "cpu" else "device": reference_bytes(held)}

    def state_dict(self) -> dict[str, Any]:
        """The copies, on the host: initial and previous, as they were at their records.

        Of sharded parameters collective, and rank 0 alone is given the whole of them.
        """
        if self._saved or self._shares is None:
            return self._saved
        held = {"initial": self._initial, "previous": self._previous}
        return {name: copy.state_dict(self._shares) for name, copy in held.items() if copy is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the copies back; they are laid where they belong at the next record, when the parameters are seen."""
        self._initial = self._previous = self._shares = None
        self._saved = dict(state)

    def _restore(self, shares: _Shares) -> None:
        saved, self._saved = self._saved, {}
        if "initial" in saved:
            self._initial = _Copy.restored(saved["initial"], shares, self.device)
        if "previous" in saved:
            self._previous = _Copy.restored(saved["previous"], shares, self.device)

    def _select(self, state: State) -> dict[str, list[Tensor]]:
        if unknown := [group for group in self.groups if group not in state.groups]:
            raise SettingsError(f"no parameter group is called {unknown}; there are {', '.join(state.groups)}.")
        chosen = {f"group {group}": list(state.groups[group]) for group in self.groups}
        named = named_parameters(state.model)
        for pattern in self.patterns:
            matched = [parameter for name, parameter in named if fnmatchcase(name, pattern)]
            if not matched:
                shown = ", ".join(name for name, _ in named[:6])
                raise SettingsError(f"no parameter matches {pattern!r}. Names look like: {shown}, ...")
            chosen[f"pattern {pattern}"] = matched
        return chosen


class _Shares:
    """What this rank has of parameters: `held`, its share of each of `tensors`, and sums over all ranks' shares."""

    def __init__(self, tensors: Sequence[Tensor], ranks: RankGroup | None) -> None:
        self.tensors = tensors
        self.held = [local_tensor(tensor) for tensor in tensors]
        self._ranks = ranks if ranks is not None and ranks.sharded else None
        self.first = ranks is None or ranks.is_rank0
        # of what several ranks hold one counts
        self._counts = [self._ranks is None or self._ranks.part(tensor) is not None for tensor in tensors]

    def total(self, values: Float[Tensor, "tensor"]) -> Float[Tensor, "tensor"]:
        """The sum over the shares of each parameter, given this rank's (collective where they are sharded)."""
        if self._ranks is None:
            return values
        nothing = values.new_zeros(())
        mine = [value if counts else nothing for value, counts in zip(values.unbind(), self._counts, strict=True)]
        return self._ranks.all_reduce_sum(torch.stack(mine) if mine else values)


class _Copy:
    """A rank's shares of parameters as they were at one record, with the whole parameters' squared norms."""

    def __init__(self, shares: _Shares, squares: Tensor, device: torch.device) -> None:
        self.tensors = [_empty_like(tensor, device) for tensor in shares.held]
        self.update(shares, squares)

    @classmethod
    def restored(cls, saved: Mapping[str, Any], shares: _Shares, device: torch.device) -> _Copy:
        """What `state_dict` gave, for parameters of the same shapes and types."""
        like = shares.tensors
        kept, now = ([(tuple(t.shape), t.dtype) for t in tensors] for tensors in (saved["tensors"], like))
        if kept != now:
            odd = next((pair for pair in zip(kept, now, strict=False) if pair[0] != pair[1]), (len(kept), len(now)))
            raise ValueError(
                f"the state was saved for other parameters than the model has: {odd[0]} then, {odd[1]} now. Follow the "
                "same groups and patterns of the same model, or go on without this metric."
            )
        copy = cls(shares, saved["squares"].to(shares.held[0].device), device)
        for tensor, value, parameter in zip(copy.tensors, saved["tensors"], like, strict=True):
            tensor.copy_(local_slice(value, like=parameter))
        return copy

    def state_dict(self, shares: _Shares) -> dict[str, Any]:
        # the squares first: they wait for the device, and with it for copies to the host that are under way
        squares = self.squares.cpu()
        whole = (gather_local(kept, like=like) for kept, like in zip(self.tensors, shares.tensors, strict=True))
        return {"squares": squares, "tensors": [tensor.cpu().clone() for tensor in whole if shares.first]}

    def update(self, shares: _Shares, squares: Tensor) -> None:
        for copy, tensor in zip(self.tensors, shares.held, strict=True):
            # stream order makes this safe: later reads of the copy are queued behind it
            copy.copy_(tensor, non_blocking=True)
        self.squares = squares

    def compare(
        self, shares: _Shares, squares: Tensor, members: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Distance, cosine and the copy's norm by group; the cosine from the three squared lengths."""
        distances = shares.total(squared_distances(shares.held, self.tensors))
        apart = gathered_sums(distances, members)
        now, then = gathered_sums(squares, members), gathered_sums(self.squares, members)
        cosines = ratio((now + then - apart) / 2, now.sqrt() * then.sqrt()).clamp(-1.0, 1.0)
        return apart.sqrt(), cosines, then.sqrt()


def _empty_like(tensor: Tensor, device: torch.device) -> Tensor:
    pinned = device.type == "cpu" and tensor.is_cuda
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device, pin_memory=pinned)


def _declare(rows: Sequence[str]) -> tuple[Variable, ...]:
    said = {
        "norm": "Euclidean norm",
        "relative_step": "|theta_t - theta_s| / |theta_t|, s the previous record; NaN at the first",
        "step_per_learning_rate": "relative_step over the sum of the learning rates since the previous record",
        "cosine_to_previous": "cos(theta_t, theta_s), s the previous record",
        "distance_to_initial": "|theta_t - theta_0| / |theta_0|; NaN where that is 0",
        "cosine_to_initial": "cos(theta_t, theta_0)",
    }
    where = f"exact; entries: {', '.join(rows)}"
    return tuple(
        Variable(
            f"exact_convergence.{name}",
            dims=("exact",),
            description=f"{text}; {where}",
            sizes={"exact": len(rows)},
            labels=tuple(rows),
        )
        for name, text in said.items()
    )
