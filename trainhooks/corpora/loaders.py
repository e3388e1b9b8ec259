"""Label counts without reading a corpus again: from a training loop's loader, or from a recorded store."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainhooks.core.token_counts import TokenCounts
from trainhooks.store import Store, open_store

_MASKED = torch.iinfo(torch.int64).min  # marks positions that a mask leaves out; no id and no ignore index
Chosen = tuple[Tensor, bool, str]  # the ids, whether the loss shifts them, and where they stood in the batch


def count_loader(
    loader: Iterable[Any],
    *,
    vocab_size: int,
    ignore_index: int = -100,
    labels: str | int | Callable[[Any], Tensor] | None = None,
    shift: bool | None = None,
) -> TokenCounts:
    """Counts the labels of one pass over `loader`, as the loss sees them; the rule says what was taken.

    What is taken from a batch, unless `labels` (a key, an index or a function of the batch) says otherwise:

    - a mapping: `labels`, else `input_ids`. Both are shifted by the loss, as in transformers: the first position of
      a row is never a label. With `input_ids`, positions whose `attention_mask` is 0 are left out.
    - a pair (inputs, targets): the targets as they stand, shifted already.
    - a tensor, alone or in a tuple of one: token ids, shifted by the loss.

    `shift` overrules that: whether the first position (last dimension) is left out. `ignore_index` never counts.
    The state of torch's random numbers is put back, so that counting before training does not change it; other
    generators that a data set draws from are its own. `documents` is not known.

    Raises ValueError for a batch of another form, ids that are not whole numbers, and, with batch and position, for
    an id outside 0 ... vocab_size - 1; also where there is nothing to count.
    """
    rules: list[str] = []
    read = 0

    def arrays() -> Iterator[np.ndarray]:
        nonlocal read
        for number, batch in enumerate(loader):
            ids, shifted, where = _chosen(batch, labels)
            shifted = shifted if shift is None else shift
            rule = _rule(where, shifted=shifted, ignore_index=ignore_index)
            if rules and rule != rules[0]:
                raise ValueError(f"batch {number} would be counted otherwise than batch 0 ({rule}; {rules[0]}).")
            rules[:] = [rule]
            read += ids.numel()
            yield _kept(ids, shifted=shifted, ignore_index=ignore_index, vocab_size=vocab_size, number=number)

    with _random_state_kept(loader):
        counts = TokenCounts.count(arrays(), vocab_size=vocab_size)
    return dataclasses.replace(counts, documents=None, rule=rules[0], tokens_read=read)


def counts_of_store(store: Store | str | os.PathLike[str], *, step: int | None = None) -> TokenCounts:
    """The labels that a recorded run was trained on up to `step`, by default the last with counts: one entry a row.

    Raises ValueError where the store has no label counts (at that step), and where none had been seen yet, as at
    step 0.
    """
    opened = store if isinstance(store, Store) else open_store(os.fspath(store))
    chosen = _last_counted(opened) if step is None else step
    counts = opened.label_counts(chosen)
    if not counts.any():
        raise ValueError(f"{opened.where}: no label had been seen at step {chosen}; take a later step.")
    return TokenCounts(
        counts,
        tokenizer_hash=opened.attributes.get("tokenizer_hash"),
        rule=f"labels that the run was trained on up to step {chosen}",
    )


def _last_counted(store: Store) -> int:
    for step in store.snapshot_steps[::-1].tolist():
        try:
            store.label_counts(step)
        except ValueError:
            continue
        return int(step)
    raise ValueError(f"{store.where} has no label counts: record with labels given, and with snapshots.")


def _chosen(batch: Any, labels: str | int | Callable[[Any], Tensor] | None) -> Chosen:
    """What of a batch is counted."""
    if callable(labels):
        return _tensor(labels(batch)), False, "what the given function took"
    if labels is not None:
        return _named(batch, labels)
    if isinstance(batch, Mapping):
        return _of_mapping(batch)
    if isinstance(batch, Tensor | np.ndarray):
        return _tensor(batch), True, "the batch"
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) in (1, 2):
        return _tensor(batch[-1]), len(batch) == 1, f"batch[{len(batch) - 1}]"
    raise ValueError(
        f"a batch is {_form(batch)}; needed a tensor, (inputs, targets) or a mapping with labels or input_ids: pass "
        "labels= a key, an index or a function that takes the labels out of a batch."
    )


def _named(batch: Any, labels: str | int) -> Chosen:
    try:
        return _tensor(batch[labels]), isinstance(batch, Mapping), f"batch[{labels!r}]"
    except (LookupError, TypeError) as error:
        raise ValueError(f"a batch is {_form(batch)}; it has no {labels!r}: pass labels= one that it has.") from error


def _of_mapping(batch: Mapping[str, Any]) -> Chosen:
    if batch.get("labels") is not None:
        return _tensor(batch["labels"]), True, "batch['labels']"
    if batch.get("input_ids") is None:
        raise ValueError(
            f"a batch is {_form(batch)}; needed labels or input_ids: pass labels= the key that holds them."
        )
    ids = _tensor(batch["input_ids"])
    if batch.get("attention_mask") is None:
        return ids, True, "batch['input_ids']"
    mask = torch.as_tensor(batch["attention_mask"]).cpu()
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(ids.shape)}: needed the same."
        )
    return ids.masked_fill(mask == 0, _MASKED), True, "batch['input_ids'] where attention_mask is not 0"


def _tensor(ids: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(ids).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"a batch's labels are {type(ids).__name__}; needed one tensor of token ids.") from error
    if tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(
            f"a batch's labels have dtype {tensor.dtype}; needed token ids: pass labels= where they stand."
        )
    return tensor.to(torch.int64)


def _kept(ids: Tensor, *, shifted: bool, ignore_index: int, vocab_size: int, number: int) -> np.ndarray:
    """The ids that count, one-dimensional."""
    if shifted and ids.ndim == 0:
        raise ValueError(f"the labels of batch {number} are a single number; needed [..., positions] to be shifted.")
    array = ids.numpy()
    counted = (array != ignore_index) & (array != _MASKED)
    if shifted:
        counted[..., 0] = False
    bad = np.argwhere(counted & ((array < 0) | (array >= vocab_size)))
    if len(bad):
        place = tuple(bad[0].tolist())
        raise ValueError(
            f"id {array[place]} in batch {number} at {place} is outside 0 ... {vocab_size - 1}: pass the vocab_size of "
            f"the tokenizer that made the ids, or ignore_index={array[place]} if it is no label."
        )
    kept: np.ndarray = array[counted]
    return kept


def _rule(where: str, *, shifted: bool, ignore_index: int) -> str:
    first = "the first position of each row left out" if shifted else "every position counted"
    return f"labels of a loader, {where}: {first}; id {ignore_index} left out"


def _form(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a mapping with {', '.join(map(str, batch)) or 'nothing'}"
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"a {type(batch).__name__}"


@contextmanager
def _random_state_kept(loader: Any) -> Iterator[None]:
    """Puts torch's generator on the CPU, and those that the loader draws from, back to where they were."""
    holders = (
        loader,
        getattr(loader, "sampler", None),
        getattr(getattr(loader, "batch_sampler", None), "sampler", None),
    )
    found = [getattr(holder, "generator", None) for holder in holders]
    generators = [one for one in {id(one): one for one in found}.values() if isinstance(one, torch.Generator)]
    states = [one.get_state() for one in generators]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for one, state in zip(generators, states, strict=True):
                one.set_state(state)
