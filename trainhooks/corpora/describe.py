"""What counts look like: zeros, Zipf exponent, coverage, entropy, and the distance between two of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import brentq

from trainhooks.core.token_counts import TokenCounts

ZIPF_RANKS = (10, 1000)
SMOOTHING = 0.5
_MIN_RANKS = 10
_MAX_EXPONENT = 50.0
_SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Zipf:
    """count ~ rank ^ -exponent over the ranks `first` ... `last`, in both estimates.

    `least_squares`: the slope of log count on log rank, each rank weighing the same; `r_squared` is how straight that
    line is. `likelihood`: the maximum of the likelihood of the counts under that law, so each token weighs the same.
    """

    first: int
    last: int
    least_squares: float
    r_squared: float
    likelihood: float


@dataclass(frozen=True)
class Description:
    """Diagnostics of counts: numbers of ids and tokens, shares in [0, 1], entropy in nats.

    `top_share[k]` is the share of all tokens that the k most frequent ids have; `ids_for_share[s]` the fewest ids
    that have the share s. `zipf` is None where too few ids occur. What is not known is None.
    """

    vocab_size: int
    tokens: int
    tokens_read: int | None
    documents: int | None
    zero_counts: int
    entropy: float
    zipf: Zipf | None
    top_share: dict[int, float]
    ids_for_share: dict[float, int]
    rule: str
    tokenizer_hash: str | None
    corpus_hash: str | None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def describe_counts(counts: TokenCounts) -> Description:
    """All diagnostics of `counts`."""
    ranked = np.sort(counts.counts)[::-1]
    return Description(
        vocab_size=counts.vocab_size,
        tokens=counts.n_tokens,
        tokens_read=counts.tokens_read,
        documents=counts.documents,
        zero_counts=int((ranked == 0).sum()),
        entropy=entropy(counts),
        zipf=zipf(counts),
        top_share=top_shares(counts),
        ids_for_share={share: ids_for_share(counts, share=share) for share in _SHARES},
        rule=counts.rule,
        tokenizer_hash=counts.tokenizer_hash,
        corpus_hash=counts.corpus_hash,
    )


def entropy(counts: TokenCounts) -> float:
    """Entropy of the token distribution in nats, 0 (one id has all) ... log vocab_size (all ids the same)."""
    share = np.sort(counts.counts[counts.counts > 0]) / counts.n_tokens  # sorted: the sum depends on no order of ids
    return max(0.0, float(-(share * np.log(share)).sum()))


def top_shares(counts: TokenCounts) -> dict[int, float]:
    """Share of all tokens, in (0, 1], of the 10, 100, 1000, ... most frequent ids, as far as the vocabulary goes."""
    running = np.cumsum(np.sort(counts.counts)[::-1])
    sizes = takewhile(lambda k: k <= counts.vocab_size, (10**power for power in range(1, 19)))
    return {k: float(running[k - 1] / running[-1]) for k in sizes}


def ids_for_share(counts: TokenCounts, *, share: float) -> int:
    """The fewest ids that together have at least `share` of all tokens, 1 ... vocab_size.

    Raises ValueError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; needed more than 0 and at most 1, a share of all tokens.")
    running = np.cumsum(np.sort(counts.counts)[::-1])
    return int(np.searchsorted(running / running[-1], share)) + 1


def zipf(counts: TokenCounts, *, ranks: tuple[int, int] = ZIPF_RANKS) -> Zipf | None:
    """The exponent of Zipf's law, 0 or more (about 1 for words), over `ranks`, first and last (1 is the top).

    The head (punctuation) and the tail (a vocabulary of merges is cut there) follow other laws, so the range is part
    of the figure. Ids that do not occur are left out, and the last rank is where they begin if that comes sooner.
    Two estimates, since they weigh the ranks differently: ordinary least squares on logarithms, and the
    maximum likelihood of p(rank) = rank^-s / sum rank^-s over a bounded range (Hanel, Corominas-Murtra, Liu & Thurner
    2017, doi:10.1371/journal.pone.0170920); the latter is sought in 0 ... 50, and is at the end where it lies beyond.
    Ranks come from the same counts, so the errors are not independent (Piantadosi 2014,
    doi:10.3758/s13423-014-0585-6) and such estimates are biased (Pilgrim & Hills 2021, doi:10.1038/s41598-021-96214-w):
    compare them with one another, not with 1.

    None where fewer than 10 ranks are left. Raises ValueError for ranks out of order.
    """
    first, last = ranks
    if not 1 <= first < last:
        raise ValueError(f"ranks are {ranks}; needed 1 <= first < last.")
    ranked = np.sort(counts.counts)[::-1]
    last = min(last, int((ranked > 0).sum()))
    if last - first + 1 < _MIN_RANKS:
        return None
    log_rank = np.log(np.arange(first, last + 1, dtype=np.float64))
    chosen = ranked[first - 1 : last]
    slope, r_squared = _line(log_rank, np.log(chosen))
    return Zipf(first, last, max(0.0, -slope), r_squared, _likelihood_exponent(chosen, log_rank))


def _line(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    """Slope and R^2; both 0 where y is constant."""
    x, y = x - x.mean(), y - y.mean()
    if not (total := float(y @ y)) > 1e-20 * len(y):
        return 0.0, 0.0
    slope = float(x @ y) / float(x @ x)
    return slope, min(1.0, slope * float(x @ y) / total)


def _likelihood_exponent(counts: Int64[np.ndarray, " n"], log_rank: Float64[np.ndarray, " n"]) -> float:
    """Where the expected log rank equals the observed one: the score of the truncated law."""
    observed = float(counts @ log_rank / counts.sum())

    def score(exponent: float) -> float:
        weights = np.exp(-exponent * (log_rank - log_rank[0]))
        return float(weights @ log_rank / weights.sum()) - observed

    if score(0.0) <= 0:
        return 0.0
    return _MAX_EXPONENT if score(_MAX_EXPONENT) >= 0 else float(brentq(score, 0.0, _MAX_EXPONENT))


def kl_divergence(counts: TokenCounts, *, other: TokenCounts, smoothing: float = SMOOTHING) -> float:
    """KL(counts || other) = sum p log(p / q) in nats, 0 (the same shares) or more; not symmetric.

    `smoothing` is added to every count of both sides first, p = (c + a) / (N + a V), by default 1/2 (the estimate of
    Krichevsky & Trofimov 1981, doi:10.1109/TIT.1981.1056331), so that ids which only one side has give a large but
    finite term. With 0 the answer is infinite where `other` lacks an id that occurs in `counts`.

    Raises ValueError where the lengths differ or smoothing is negative or not finite.
    """
    if counts.vocab_size != other.vocab_size:
        raise ValueError(
            f"cannot compare counts of {counts.vocab_size} and {other.vocab_size} entries: count both with one "
            "tokenizer and one vocab_size."
        )
    if not 0 <= smoothing < float("inf"):
        raise ValueError(f"smoothing is {smoothing}; needed 0 or more, a number added to every count.")
    p, q = (_smoothed(each, smoothing) for each in (counts, other))
    occurs = p > 0
    if (q[occurs] == 0).any():
        return float("inf")
    return max(0.0, float((p[occurs] * np.log(p[occurs] / q[occurs])).sum()))


def _smoothed(counts: TokenCounts, smoothing: float) -> Float64[np.ndarray, " vocab"]:
    raised = counts.counts + np.float64(smoothing)
    share: np.ndarray = raised / raised.sum()
    return share
