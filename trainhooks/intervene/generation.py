"""How generated text differs after an edit: MAUVE with the unmodified model's features, distinct-n, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

LEAST_SELF_SCORE = 0.9


@dataclass(frozen=True)
class GenerationScore:
    """MAUVE in (0, 1] of edited against unmodified text for each seed, beside unmodified against unmodified."""

    mauve: tuple[float, ...]
    self_mauve: tuple[float, ...]


def distinct_n(tokens: Int64[Tensor, "sample position"], *, n: int = 2) -> float:
    """Different n-grams over all n-grams of all samples, in (0, 1]; NaN for samples shorter than n.

    Falls with the amount of text: compare equal amounts. Source: Li et al. 2016, arXiv 1510.03055, section 5.
    Raises ValueError for n < 1.
    """
    grams = _grams(tokens, n).flatten(0, 1)
    return len(grams.unique(dim=0)) / len(grams) if len(grams) else float("nan")


def repetition(tokens: Int64[Tensor, "sample position"], *, n: int = 4) -> float:
    """1 - different n-grams over n-grams within each sample, averaged, in [0, 1); NaN for samples shorter than n.

    Source: Welleck et al. 2020, arXiv 1908.04319, seq-rep-n (eq. 10). Raises ValueError for n < 1.
    """
    grams = _grams(tokens, n)
    if not grams.shape[0] or not grams.shape[1]:
        return float("nan")
    return sum(1 - len(sample.unique(dim=0)) / len(sample) for sample in grams) / len(grams)


def mauve_score(
    reference: Float[Tensor, "sample dim"], generated: Float[Tensor, "sample dim"], *, seed: int = 0
) -> float:
    """MAUVE in (0, 1], 1 for the same distribution, from given features (one row a text).

    Source: Pillutla et al. 2021, arXiv 2102.01454. Raises ImportError without the extra, ValueError for fewer than 20
    texts in an arm: the histogram takes a bucket for 10 of them.
    """
    if min(len(reference), len(generated)) < 20:
        raise ValueError(f"MAUVE got {len(reference)} and {len(generated)} texts; needed are 20 in each arm, at least.")
    try:
        from mauve import compute_mauve  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("MAUVE needs mauve-text: pip install 'trainhooks[generation]'.") from error
    arms: dict[str, Any] = {
        "p_features": reference.float().cpu().numpy(),
        "q_features": generated.float().cpu().numpy(),
    }
    return float(compute_mauve(**arms, seed=seed, verbose=False).mauve)


def score_generation(
    unmodified: Sequence[Float[Tensor, "sample dim"]], edited: Sequence[Float[Tensor, "sample dim"]]
) -> GenerationScore:
    """MAUVE of edited text, by seed, beside unmodified text of one seed against that of the next.

    Features are the *unmodified* model's last hidden states in both arms (`last_states`), one array a seed. Raises
    ValueError for fewer than three seeds, and where unmodified against unmodified is below 0.9: such a score cannot
    tell models apart.
    """
    if len(unmodified) < 3 or len(edited) != len(unmodified):
        raise ValueError(f"got {len(unmodified)} and {len(edited)} seeds; needed are 3 or more, the same for both.")
    own = [mauve_score(a, b, seed=i) for i, (a, b) in enumerate(pairwise(unmodified))]
    own.append(mauve_score(unmodified[-1], unmodified[0], seed=len(own)))
    if min(own) < LEAST_SELF_SCORE:
        raise ValueError(
            f"unmodified against unmodified text has MAUVE {min(own):.3f}; needed is {LEAST_SELF_SCORE}. Generate "
            "more or longer texts."
        )
    pairs = zip([*unmodified[1:], unmodified[0]], edited, strict=True)  # another seed's: as in the self score
    return GenerationScore(tuple(mauve_score(a, b, seed=i) for i, (a, b) in enumerate(pairs)), tuple(own))


@torch.no_grad()
def generate(
    model: nn.Module, prompts: Int64[Tensor, "sample prompt"], *, length: int, seed: int = 0
) -> Int64[Tensor, "sample length"]:
    """`length` tokens after each prompt, drawn from the model's own distribution, without the prompts.

    Draws come from an own CPU generator; the whole text is read again for each token, so keep it short.
    """
    generator = torch.Generator().manual_seed(seed)
    text = prompts
    for _ in range(length):
        p = torch.softmax(model(input_ids=text).logits[:, -1].double().cpu(), 1)
        text = torch.cat([text, torch.multinomial(p, 1, generator=generator).to(text.device)], 1)
    return text[:, prompts.shape[1] :]


@torch.no_grad()
def last_states(model: nn.Module, text: Int64[Tensor, "sample position"]) -> Float[Tensor, "sample dim"]:
    """The last hidden state at the last position of each text: MAUVE's features, from the unmodified model."""
    states: Tensor = model(input_ids=text, output_hidden_states=True).hidden_states[-1][:, -1]
    return states.float()


def _grams(tokens: Tensor, n: int) -> Tensor:
    """All n-grams of each sample [sample, gram, n]."""
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has one token or more.")
    if tokens.shape[1] < n:
        return tokens.new_empty(len(tokens), 0, n)
    return tokens.unfold(1, n, 1)
