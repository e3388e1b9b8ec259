"""What a checkpoint's model makes of a text: loss, average output probability, its probe, its distance to unigrams.

This path loads models, where the rest of the analyzer reads single tensors; `TextProbe.announce` says the cost.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from trainhooks.analyze.model_loading import load_model, tokenizer_file
from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.checkpoints.suite import Suite
from trainhooks.core.formatting import human
from trainhooks.core.token_counts import TokenCounts
from trainhooks.core.variable import Variable
from trainhooks.corpora.documents import load_tokenizer
from trainhooks.metrics.base import State
from trainhooks.metrics.probability_probe import CHANNEL_VARIABLES, ProbabilityProbe
from trainhooks.metrics.probability_probe import VARIABLES as PROBE_VARIABLES
from trainhooks.model import find_output_embedding
from trainhooks.model.hooks import watch_head_input
from trainhooks.numerics.products import exact_products
from trainhooks.probe.row_selection import RowSelection
from trainhooks.probe.target import as_counts

CONTEXT_LENGTH = 128
MAX_POSITIONS = 8192
TEXT_LIMIT = 64 << 20
"""Bytes of text that are read: 64 MB hold some 15 million tokens, where a few thousand positions are measured."""
PASS_ELEMENTS = 1 << 26
"""Logits of one forward pass, 268 MB in float32; one sequence is the least."""
BLOCK_ELEMENTS = 1 << 23
ENOUGH_POSITIONS, ENOUGH_SEQUENCES = 1024, 64

SEEN = "on the tokens with a count, alpha renormalised there"
TEXT_VARIABLES = (
    Variable("text.loss", unit="nat", description="mean cross-entropy of the text's next token; >= 0, a token"),
    Variable(
        "text.kl_to_unigram",
        unit="nat",
        description=f"KL(alpha || c/N) >= 0, alpha the mean predicted distribution; {SEEN}",
    ),
    Variable("text.kl_from_unigram", unit="nat", description=f"KL(c/N || alpha) >= 0; {SEEN}"),
    Variable("text.unseen_probability", description="alpha's mass on rows without a count, padding included; [0, 1]"),
    Variable("text.positions", description="positions of the text that were predicted"),
    Variable("text.excluded_positions", description="positions left out: logits without a finite softmax"),
    Variable(
        "text.log_probability",
        ("token",),
        dtype="float32",
        unit="nat",
        description="log alpha_w, alpha_w the mean over positions of P(w|x); -inf where 0",
    ),
)
TRANSFER = "probability.transfer_r2"
# what one checkpoint alone cannot say: its step, the one before it, the first one
_OF_SERIES = {
    TRANSFER,
    *(f"probability.{name}" for name in ("step", "untrained_r2", "untrained_variance", "untrained_step")),
}
Fit = Mapping[str, Tensor]
"""The parts of a probability probe's fit, on the host."""


@dataclass(frozen=True, eq=False)
class TextProbe:
    """Measures models on one text, each by itself: the same positions, counts and settings for a whole suite.

    `text_path`: a UTF-8 file of at most 64 MiB. `tokenizer_path`: a tokenizer.json or a folder with one; None takes
    that of the checkpoint that `prepared` is given. `counts`: of that tokenizer, see `TokenCounts`; `min_count`,
    `exclude` and `vocab_size` say which rows the probe fits, as in `token_mask`; a `RowSelection` says all four.

    The text is tokenized without special tokens and cut into windows of `context_length` inputs, each predicting its
    next token; up to `max_positions` positions are taken, in windows spread evenly over the text; what does not fill
    a window is left out. A shorter text, or fewer positions, is one window. `device` is where models run.

    `windows` [sequence, context + 1] are the ids, filled in by `prepared`; an instance with windows needs neither
    text nor tokenizer, so prepare once and send that to the workers.

    Raises ValueError for limits below 1, and for settings that do not fit together.
    """

    text_path: str | os.PathLike[str]
    tokenizer_path: str | os.PathLike[str] | None = None
    counts: TokenCounts | np.ndarray | RowSelection = field(kw_only=True)
    max_positions: int = field(default=MAX_POSITIONS, kw_only=True)
    context_length: int = field(default=CONTEXT_LENGTH, kw_only=True)
    min_count: int = field(default=1, kw_only=True)
    exclude: tuple[int, ...] = field(default=(), kw_only=True)
    vocab_size: int | None = field(default=None, kw_only=True)
    device: str = field(default="cpu", kw_only=True)
    windows: Int64[np.ndarray, "sequence length"] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("max_positions", "context_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; needed is 1 or more, or nothing is measured.")
        _ = self.rows  # settings that make no sense are refused before any model is loaded

    @cached_property
    def rows(self) -> RowSelection:
        """The rows that the probe fits."""
        return RowSelection.of(
            self.counts, min_count=self.min_count, exclude=self.exclude, vocab_size=self.vocab_size
        ).counted()

    @property
    def variables(self) -> tuple[Variable, ...]:
        """What `measure` gives: `text.*`, and of the probability probe and channels what one model decides."""
        return tuple(v for v in self.series_variables if v.name not in _OF_SERIES)

    @property
    def series_variables(self) -> tuple[Variable, ...]:
        """What a series of checkpoints holds: the transfer from one to the next and the first one's figures as well."""
        return (*TEXT_VARIABLES, *PROBE_VARIABLES, *CHANNEL_VARIABLES)

    @property
    def fingerprint(self) -> str:
        """A hash of the windows, that two probes share where they read the same tokens. Raises ValueError before
        `prepared`."""
        if self.windows is None:
            raise ValueError(f"{self.text_path} is not tokenized yet; call prepared() first.")
        shape = "x".join(map(str, self.windows.shape))
        return sha256(f"{shape}:".encode() + np.ascontiguousarray(self.windows).tobytes()).hexdigest()

    def prepared(self, place: str | os.PathLike[str]) -> TextProbe:
        """This probe with its windows, tokenized by `tokenizer_path`, else by the tokenizer of the model at `place`.

        Raises ValueError for a text that is too large, not UTF-8 or below two tokens; CheckpointError where there is
        no tokenizer.json; ImportError without tokenizers.
        """
        if self.windows is not None:
            return self
        tokenizer, _ = load_tokenizer(
            str(tokenizer_file(place if self.tokenizer_path is None else self.tokenizer_path))
        )
        ids = np.asarray(tokenizer.encode(_read(Path(self.text_path)), add_special_tokens=False).ids, dtype=np.int64)
        if len(ids) < 2:
            raise ValueError(f"{self.text_path} has {len(ids)} tokens; needed are 2 or more, an input and its next.")
        return replace(self, windows=_windows(ids, context=self.context_length, most=self.max_positions))

    def measure(self, place: str | os.PathLike[str]) -> Mapping[str, np.ndarray | float]:
        """All `variables` of the model at `place`: a folder, or a hub repository as "org/name[@revision]".

        The model is loaded in float32 without running code that it brings. `text.*` are of the model's own logits
        (float32 softmax, float64 sums); `probability.*` of softmax(E h + b), which differs where a model scales or
        caps its logits behind the head. Those figures describe the state at `place` itself, with all positions and
        windows as sequences. Memory: the model in float32, twice a pass's logits (268 MB, or one window's where
        that is more) and the hidden states.

        Raises CheckpointError where `place` holds no loadable model, lacks weights, has a shorter context or a smaller
        vocabulary, or gives no finite softmax; ValueError where counts do not fit; ImportError without transformers.
        """
        return self.measure_after(place, before=None)[0]

    def measure_after(
        self, place: str | os.PathLike[str], *, before: Fit | None
    ) -> tuple[Mapping[str, np.ndarray | float], Fit | None]:
        """`measure` with `probability.transfer_r2` from the fit of the checkpoint `before`, and a fit for the next.

        Where nothing can be fitted here, that is `before` itself.
        """
        windows = self.prepared(place).windows
        assert windows is not None
        model = load_model(place).to(self.device)
        rows = len(find_output_embedding(model).weight)
        _check_fit(model, windows, rows=rows, name=str(place))
        counts = as_counts(self.rows.for_rows(rows).counts)
        probe = ProbabilityProbe(self.rows, positions_per_sequence=windows.shape[1], max_positions=windows.size)
        if before is not None:
            probe.load_state_dict({"fits": [(-1, before)], "untrained": {}})
        tally = _run(model, torch.from_numpy(windows), probe=probe, rows=rows)
        if not int(tally.positions):
            raise CheckpointError(
                f"{place}: no position of the text has a finite softmax; look for NaN in its weights."
            )
        state = State(step=1, model=model, head=find_output_embedding(model), groups={})
        figures = {name: v for name, v in probe.compute(state).items() if name not in _OF_SERIES - {TRANSFER}}
        found = tally.figures(counts) | figures
        _, fit = probe.state_dict()["fits"][-1] if "probability.r2" in figures else (-1, before)
        return {name: _plain(value) for name, value in found.items()}, fit

    def announce(self, suite: Suite) -> str:
        """What measuring the suite costs, in words: positions, bytes of weights, memory, operations.

        Estimated from the last checkpoint's headers; no weight is read. Raises CheckpointError where the suite holds
        no models (a store of matrices), and as `prepared` and `open_checkpoint` do.
        """
        last = suite.entries[-1]
        if suite.kind == "store":
            raise CheckpointError(f"{suite.name} is a store of matrices; a text needs models: give their checkpoints.")
        windows = self.prepared(last.location).windows
        assert windows is not None
        entries = open_checkpoint(last.location).tensors.values()
        size, parameters = (sum(part) for part in zip(*((e.nbytes, math.prod(e.shape)) for e in entries), strict=True))
        sequences, length = len(windows), windows.shape[1] - 1
        positions, models = sequences * length, len(suite.entries)
        head = max((math.prod(e.shape) for e in entries if len(e.shape) == 2), default=0)
        # 2 a parameter and position in the pass, and the head once more for the probe
        work = 2.0 * positions * (parameters + head)
        few = positions < ENOUGH_POSITIONS or sequences < ENOUGH_SEQUENCES
        caution = f" Below {ENOUGH_POSITIONS} positions or {ENOUGH_SEQUENCES} sequences the slope is unsteady."
        verb = "fetch" if suite.kind == "hub" else "read"
        return (
            f"With a text every model is loaded: {positions} positions in {sequences} sequences of {length} tokens of "
            f"{self.text_path}.{caution if few else ''}\n"
            f"{models} checkpoints to {verb}, {human(size)} each, {human(size * models)} in all (by the last one); "
            f"{human(4 * parameters)} of memory for a worker's model in float32; about {work / 1e9:,.3g} GFLOP each."
        )


def measure_text(
    place: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str],
    counts: TokenCounts | np.ndarray,
    tokenizer: str | os.PathLike[str] | None = None,
    max_positions: int = MAX_POSITIONS,
    context_length: int = CONTEXT_LENGTH,
    vocab_size: int | None = None,
    device: str = "cpu",
) -> Mapping[str, np.ndarray | float]:
    """The figures of one model on the text in a file, by variable name; see `TextProbe`, also for what is raised."""
    limits: Any = {"max_positions": max_positions, "context_length": context_length}
    return TextProbe(text, tokenizer, counts=counts, **limits, vocab_size=vocab_size, device=device).measure(place)


class _Tally:
    """Sums over positions of the model's own log-probabilities."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.log_sum = torch.full((rows,), -torch.inf, dtype=torch.float64, device=device)
        self.loss, self.positions, self.excluded = torch.zeros(3, dtype=torch.float64, device=device).unbind()

    def add(self, logits: Float[Tensor, "position vocab"], *, labels: Int64[Tensor, "position"]) -> None:
        """Add positions, a block at a time; `logits` is overwritten."""
        size = max(1, BLOCK_ELEMENTS // logits.shape[1])
        for part, wanted in zip(logits.split(size), labels.split(size), strict=True):
            block = part.float()
            normaliser = block.logsumexp(1, keepdim=True)
            good = normaliser.isfinite()
            block.sub_(normaliser).masked_fill_(~good, -torch.inf)
            self.log_sum = torch.logaddexp(self.log_sum, block.logsumexp(0).double())
            of_label = block.gather(1, wanted[:, None]).masked_fill(~good, 0)
            self.loss = self.loss - of_label.sum(dtype=torch.float64)
            self.positions = self.positions + good.sum()
            self.excluded = self.excluded + (~good).sum()

    def figures(self, counts: Int64[Tensor, "vocab"]) -> dict[str, Tensor]:
        """The `text.*` values, with counts for every row."""
        log_alpha = self.log_sum - self.positions.log()
        to, from_ = unigram_kl(log_alpha, counts=counts)
        return {
            "text.loss": self.loss / self.positions,
            "text.kl_to_unigram": to,
            "text.kl_from_unigram": from_,
            "text.unseen_probability": log_alpha.exp()[(counts == 0).to(log_alpha.device)].sum(),
            "text.positions": self.positions,
            "text.excluded_positions": self.excluded,
            "text.log_probability": log_alpha.float(),
        }


def unigram_kl(
    log_alpha: Float64[Tensor, "vocab"], *, counts: Int64[Tensor, "vocab"]
) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
    """KL(p || q) and KL(q || p) in nats, 0 or more: p is alpha renormalised over the tokens with a count, q = c / N.

    No smoothing: tokens without a count would make the first infinite, so they are left out, and their mass m is given
    beside it. Over all rows the second would be larger by -log(1 - m), the first infinite for any m > 0. The second is
    infinite where a token with a count has alpha = 0; both are NaN where all of them have.

    Source: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694; the restriction is this package's own.
    """
    seen = (counts > 0).to(log_alpha.device)
    log_p = log_alpha[seen]
    log_p = log_p - log_p.logsumexp(0)
    log_q = counts.to(log_alpha.device)[seen].double().log()
    log_q = log_q - log_q.logsumexp(0)
    gap = log_p - log_q
    # 0 log 0 = 0; NaN stays
    to = (log_p.exp() * gap.masked_fill(log_p == -torch.inf, 0)).sum()
    return to.clamp(min=0), (log_q.exp() * -gap).sum().clamp(min=0)


@torch.no_grad()
def _run(model: nn.Module, windows: Int64[Tensor, "sequence length"], *, probe: ProbabilityProbe, rows: int) -> _Tally:
    """Every window through the model: its logits into a tally, what enters the head into the probe."""
    head = find_output_embedding(model)
    tally = _Tally(rows, head.weight.device)
    handle = watch_head_input(head.module, lambda hidden: probe.observe(hidden, step=0), training_only=False)
    try:
        with exact_products(head.weight.device.type):
            for batch in windows.split(max(1, PASS_ELEMENTS // (rows * windows.shape[1]))):
                inputs, labels = (part.to(head.weight.device) for part in (batch[:, :-1], batch[:, 1:]))
                logits = model(input_ids=inputs, use_cache=False).logits
                tally.add(logits.flatten(0, 1), labels=labels.flatten())
    finally:
        handle.remove()
    return tally


def _read(path: Path) -> str:
    size = path.stat().st_size
    if size > TEXT_LIMIT:
        raise ValueError(
            f"{path} has {size} bytes; at most {TEXT_LIMIT} are read. Pass a part of it: few are measured."
        )
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}). Convert it first.") from error


def _windows(ids: Int64[np.ndarray, " token"], *, context: int, most: int) -> Int64[np.ndarray, "sequence length"]:
    """Windows of inputs and the token behind them, the same distance apart; the last id is never an input."""
    length = min(context, most, len(ids) - 1)
    available = (len(ids) - 1) // length
    count = min(available, most // length)
    starts = np.arange(count) * available // count * length
    windows: np.ndarray = ids[starts[:, None] + np.arange(length + 1)]
    return windows


def _check_fit(model: nn.Module, windows: Int64[np.ndarray, "sequence length"], *, rows: int, name: str) -> None:
    config: Any = model.config
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and windows.shape[1] - 1 > longest:
        raise CheckpointError(
            f"{name} takes {longest} positions; the windows have {windows.shape[1] - 1}. Pass a context_length of "
            f"{longest} or less."
        )
    if int(windows.max()) >= rows:
        raise CheckpointError(
            f"{name} has {rows} rows; the text has id {int(windows.max())}: a tokenizer of another model. Pass its own."
        )


def _plain(value: Tensor | float) -> np.ndarray | float:
    if not isinstance(value, Tensor):
        return float(value)
    return float(value) if value.ndim == 0 else value.cpu().numpy()
