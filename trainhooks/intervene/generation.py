"""How generated text differs after an edit: MAUVE with the unmodified model's features, distinct-n, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from trainhooks.intervene.contexts import BLOCK_ELEMENTS, choose_windows
from trainhooks.intervene.target import Target

LEAST_SELF_SCORE = 0.9
LEAST_TEXTS = 20
"""In each arm: MAUVE's histogram takes a bucket for 10 texts."""
_BATCH = 64  # texts generated together


@dataclass(frozen=True)
class UnmodifiedText:
    """What the unmodified model writes after `prompts` [sample, prompt]: for each seed `texts` [sample, length] and
    their `features` [sample, dim], and `self_mauve`, the text of one seed against that of the next."""

    prompts: Int64[Tensor, "sample prompt"]
    texts: tuple[Int64[Tensor, "sample length"], ...]
    features: tuple[Float[Tensor, "sample dim"], ...]
    self_mauve: tuple[float, ...]


@dataclass(frozen=True)
class GenerationScore:
    """Edited beside unmodified text: MAUVE in (0, 1] for each seed, distinct-2 and repetition (4-grams) as means over
    the seeds, (unmodified, edited)."""

    samples: int
    prompt: int
    length: int
    mauve: tuple[float, ...]
    self_mauve: tuple[float, ...]
    distinct: tuple[float, float]
    repetition: tuple[float, float]

    def render(self) -> str:
        """Two lines: MAUVE beside the self score, and the figures of both arms."""
        return (
            f"{self.samples} texts of {self.length} tokens after {self.prompt}, {len(self.mauve)} seeds: "
            f"MAUVE {_range(self.mauve)}; unmodified against unmodified {_range(self.self_mauve)}\n"
            f"distinct-2 {self.distinct[1]:.3f} (unmodified {self.distinct[0]:.3f}), "
            f"repetition-4 {self.repetition[1]:.3f} (unmodified {self.repetition[0]:.3f})"
        )


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
    texts in an arm.
    """
    _check_texts(min(len(reference), len(generated)))
    arms: dict[str, Any] = {
        "p_features": reference.float().cpu().numpy(),
        "q_features": generated.float().cpu().numpy(),
    }
    return float(_mauve()(**arms, seed=seed, verbose=False).mauve)


def self_scores(unmodified: Sequence[Float[Tensor, "sample dim"]]) -> tuple[float, ...]:
    """MAUVE of each seed's unmodified text against the next seed's, from features, one array a seed.

    Raises ValueError for fewer than three seeds, and where a score is below 0.9: such a score cannot tell models
    apart.
    """
    if len(unmodified) < 3:
        raise ValueError(f"got {len(unmodified)} seeds; needed are 3 or more.")
    pairs = [*pairwise(unmodified), (unmodified[-1], unmodified[0])]
    own = tuple(mauve_score(a, b, seed=i) for i, (a, b) in enumerate(pairs))
    if min(own) < LEAST_SELF_SCORE:
        raise ValueError(
            f"unmodified against unmodified text has MAUVE {min(own):.3f}; needed is {LEAST_SELF_SCORE}. Generate "
            "more or longer texts."
        )
    return own


def draw_prompts(
    target: Target, documents: Sequence[str], *, samples: int, context_length: int, seed: int = 0
) -> Int64[Tensor, "sample prompt"]:
    """The first `context_length` // 8 tokens (one at least) of windows of the documents, no window twice.

    Raises ValueError where the documents have fewer such windows, and as `choose_windows`.
    """
    width = max(1, context_length // 8)
    windows = choose_windows(
        target, documents, context_length=context_length, max_positions=2 * samples * context_length, seed=seed
    )
    starts = [ids[:width] for _, ids in windows if len(ids) >= width]
    if len(starts) < samples:
        raise ValueError(
            f"the test documents have {len(starts)} windows to begin a text with; {samples} texts are asked for. "
            "Give more text, a smaller context_length, or generate fewer."
        )
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed))[:samples]
    return torch.tensor(starts)[order]


def unmodified_text(
    model: nn.Module, prompts: Int64[Tensor, "sample prompt"], *, length: int, seeds: int = 3
) -> UnmodifiedText:
    """`length` tokens after each prompt for each seed, and whether they can serve as a reference.

    Raises ValueError as `self_scores` and for fewer than 20 prompts, ImportError without the extra; the latter two
    before anything is generated.
    """
    _check_texts(len(prompts))
    _mauve()
    texts = tuple(generate(model, prompts, length=length, seed=seed) for seed in range(seeds))
    features = tuple(last_states(model, torch.cat([prompts, text], 1)) for text in texts)
    return UnmodifiedText(prompts, texts, features, self_scores(features))


def score_generation(model: nn.Module, edited: nn.Module, *, reference: UnmodifiedText) -> GenerationScore:
    """Text of the `edited` model after the same prompts, beside `reference`, which is that of the unmodified `model`.

    Features are the *unmodified* model's last hidden states in both arms. Edited text of a seed is held against
    unmodified text of the next, as in the self score. Raises ImportError without the extra.
    """
    length = reference.texts[0].shape[1]
    texts = [generate(edited, reference.prompts, length=length, seed=i) for i in range(len(reference.texts))]
    features = [last_states(model, torch.cat([reference.prompts, text], 1)) for text in texts]
    others = [*reference.features[1:], reference.features[0]]
    pairs = zip(others, features, strict=True)
    return GenerationScore(
        samples=len(reference.prompts),
        prompt=reference.prompts.shape[1],
        length=length,
        mauve=tuple(mauve_score(a, b, seed=i) for i, (a, b) in enumerate(pairs)),
        self_mauve=reference.self_mauve,
        distinct=(fmean(map(distinct_n, reference.texts)), fmean(map(distinct_n, texts))),
        repetition=(fmean(map(repetition, reference.texts)), fmean(map(repetition, texts))),
    )


@torch.no_grad()
def generate(
    model: nn.Module, prompts: Int64[Tensor, "sample prompt"], *, length: int, seed: int = 0
) -> Int64[Tensor, "sample length"]:
    """`length` tokens after each prompt, drawn from the model's own distribution, without the prompts.

    No temperature, no truncation and no end: a generation config beside the model is not read. Draws come from an own
    CPU generator. The model's own cache is used where its output has one, else the text is read again for each token.
    """
    generator = torch.Generator().manual_seed(seed)
    options = {"use_cache": True} if hasattr(model, "config") else {}
    done = []
    for part in prompts.split(_BATCH):
        text = unread = part
        cache = None
        for _ in range(length):
            found = model(input_ids=unread, **options, **({} if cache is None else {"past_key_values": cache}))
            p = torch.softmax(found.logits[:, -1].double().cpu(), 1)
            drawn = torch.multinomial(p, 1, generator=generator).to(text.device)
            text = torch.cat([text, drawn], 1)
            cache = getattr(found, "past_key_values", None)
            unread = text if cache is None else drawn
        done.append(text[:, prompts.shape[1] :])
    return torch.cat(done)


@torch.no_grad()
def last_states(model: nn.Module, text: Int64[Tensor, "sample position"]) -> Float[Tensor, "sample dim"]:
    """The last hidden state at the last position of each text: MAUVE's features, from the unmodified model."""
    vocab = int(getattr(getattr(model, "config", None), "vocab_size", 1))
    size = max(1, BLOCK_ELEMENTS // (vocab * text.shape[1]))  # the model forms logits for the whole text
    parts = [model(input_ids=part, output_hidden_states=True).hidden_states[-1][:, -1] for part in text.split(size)]
    return torch.cat(parts).float()


def _check_texts(samples: int) -> None:
    if samples < LEAST_TEXTS:
        raise ValueError(f"MAUVE got {samples} texts; needed are {LEAST_TEXTS} in each arm, at least.")


def _mauve() -> Any:
    try:
        from mauve import compute_mauve  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("MAUVE needs mauve-text: pip install 'trainhooks[generation]'.") from error
    return compute_mauve


def _range(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _grams(tokens: Tensor, n: int) -> Tensor:
    """All n-grams of each sample [sample, gram, n]."""
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has one token or more.")
    if tokens.shape[1] < n:
        return tokens.new_empty(len(tokens), 0, n)
    return tokens.unfold(1, n, 1)
