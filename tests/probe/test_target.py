import os
from pathlib import Path

import numpy as np
import pytest
import torch

from trainhooks.core.token_counts import TokenCounts
from trainhooks.probe import (
    counts_for_rows,
    effective_rows,
    frequency_target,
    shrunk_weights,
    smoothed_frequency_target,
    sqrt_weights,
    token_mask,
)

DATA = Path(os.environ.get("TRAINHOOKS_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
COUNTS = np.array([50, 0, 30, 1, 19, 0])


def test_target_is_minus_the_log_of_the_relative_frequency():
    y = frequency_target(COUNTS)
    assert y[[0, 2, 3, 4]].tolist() == pytest.approx([-np.log(c / 100) for c in (50, 30, 1, 19)], abs=1e-14)
    assert y.isnan().tolist() == [False, True, False, False, False, True]


def test_target_outside_the_mask_is_nan():
    mask = token_mask(COUNTS, min_count=10)
    assert mask.tolist() == [True, False, True, False, True, False]
    assert torch.equal(frequency_target(COUNTS, mask=mask).isnan(), ~mask)


def test_target_does_not_see_the_corpus_length():
    assert torch.allclose(frequency_target(COUNTS * 7), frequency_target(COUNTS), equal_nan=True, atol=1e-14)


def test_smoothed_target_covers_every_row():
    expected = [-np.log((c + 0.5) / 103) for c in COUNTS]
    assert smoothed_frequency_target(COUNTS).tolist() == pytest.approx(expected, abs=1e-14)


def test_mask_settings_hold_together():
    own = torch.tensor([True, True, True, True, False, True])
    assert token_mask(COUNTS, exclude=[0], mask=own, vocab_size=3).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_count": 0}, "min_count is 0"),
        ({"exclude": [6]}, "excluded ids"),
        ({"exclude": [-1]}, "excluded ids"),
        ({"mask": torch.ones(5, dtype=torch.bool)}, "the mask has 5 entries"),
    ],
)
def test_mask_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        token_mask(COUNTS, **settings)


def test_target_refuses_unseen_tokens_in_the_mask():
    with pytest.raises(ValueError, match=r"never counted \(ids \[1, 5\]\)"):
        frequency_target(COUNTS, mask=torch.ones(6, dtype=torch.bool))


@pytest.mark.parametrize("counts", [[0.5, 2.0], [[1, 2]], [-1, 3], [0, 0], np.zeros(0, dtype=int), [True, False]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match="token counts"):
        frequency_target(np.array(counts))


def test_padding_rows_need_a_word():
    assert counts_for_rows(COUNTS, rows=8, vocab_size=6).tolist() == [*COUNTS.tolist(), 0, 0]
    with pytest.raises(ValueError, match="vocab_size=3 calls id 3 padding, but its count is 1"):
        counts_for_rows(COUNTS, rows=6, vocab_size=3)
    with pytest.raises(ValueError, match=r"6 entries.*8 rows.*vocab_size=6"):
        counts_for_rows(COUNTS, rows=8)
    with pytest.raises(ValueError, match="count with the model's own tokenizer"):
        counts_for_rows(COUNTS, rows=4)
    assert counts_for_rows(np.array([5, 3, 0]), rows=3, vocab_size=2).tolist() == [5, 3, 0]


def test_one_rule_says_what_padding_is():
    """The largest counts are never lost, and rows of another tokenizer are not called padding."""
    counts = np.arange(1, 501)
    for fit in (
        lambda **of: counts_for_rows(counts, **of),
        lambda **of: TokenCounts(counts).for_rows(of.pop("rows"), **of),
    ):
        with pytest.raises(ValueError, match=r"vocab_size=450 calls id 450 padding, but its count is 451"):
            fit(rows=500, vocab_size=450)
        with pytest.raises(ValueError, match=r"The extra 12 rows \(500-511\) are padding: pass `vocab_size=500`"):
            fit(rows=512)
        with pytest.raises(ValueError, match=r"7692 rows without a count are more than padding: .* another tokenizer"):
            fit(rows=8192)
        assert fit(rows=8192, vocab_size=500).sum() == counts.sum()  # said, and therefore so


def test_weights():
    assert shrunk_weights(COUNTS).tolist() == pytest.approx([c / (c + 10) for c in COUNTS])
    assert sqrt_weights(COUNTS).tolist() == pytest.approx([c**0.5 for c in COUNTS])
    assert effective_rows(torch.full((9,), 0.3)) == pytest.approx(9)
    assert effective_rows(torch.tensor([1e9, 1.0, 1.0])) == pytest.approx(1, abs=1e-6)


def test_counts_of_a_whole_run():
    file = DATA / "counts" / "pythia-unigrams.npy"
    if not file.exists():
        pytest.skip(f"no {file}: set TRAINHOOKS_DATA to a data folder")
    counts = counts_for_rows(np.load(file, allow_pickle=False), rows=50304, vocab_size=50277)
    assert int((~token_mask(counts)).sum()) == 214 + 27
    assert effective_rows(counts.double()) == pytest.approx(171, abs=1)


def test_settings_that_would_be_read_as_something_else_are_refused():
    counts = np.array([5, 0, 3])
    with pytest.raises(ValueError, match="vocab_size is -1"):
        token_mask(counts, vocab_size=-1)
    with pytest.raises(ValueError, match="vocab_size=-1 does not fit"):
        counts_for_rows(counts, rows=3, vocab_size=-1)
    with pytest.raises(ValueError, match="the counts have 3"):
        frequency_target(counts, mask=torch.ones(1, dtype=torch.bool))
    with pytest.raises(ValueError, match="whole numbers"):
        frequency_target(np.array(["many", "few"]))
    assert torch.equal(frequency_target(counts.astype(">i8"))[::2], frequency_target(counts)[::2])
    assert frequency_target(np.full(4, 2**62)).numpy() == pytest.approx(np.log(4))
