"""One object says which rows enter; whatever takes its settings takes it as well."""

import pickle

import numpy as np
import pytest
import torch

import trainhooks as th
from trainhooks.analyze.text import TextProbe
from trainhooks.core.errors import SettingsError
from trainhooks.probe.row_selection import RowSelection, rows_of_matrix, settings_of_run
from trainhooks.probe_report.matrix import report_matrix

COUNTS = np.array([9, 0, 4, 1, 7, 3, 2, 5], dtype=np.int64)


def test_rows_and_target_of_the_settings():
    rows = th.RowSelection(COUNTS, min_count=2, exclude=[4], vocab_size=8)
    assert rows.mask.tolist() == [True, False, True, False, False, True, True, True]
    found = rows.for_rows(10)
    assert found.counts.tolist() == [*COUNTS.tolist(), 0, 0]
    assert found.mask.nonzero().flatten().tolist() == [0, 2, 5, 6, 7]
    assert found.target[2].item() == pytest.approx(np.log(31 / 4))
    assert found.target[[1, 3, 4, 8, 9]].isnan().all()
    assert (
        rows.for_rows(8).key
        != found.key
        == th.RowSelection(COUNTS, min_count=2, exclude=[4], vocab_size=8).for_rows(10).key
    )


def test_it_is_frozen_and_taken_as_it_is():
    rows = RowSelection(COUNTS, min_count=2)
    assert RowSelection.of(rows) is rows
    with pytest.raises(AttributeError):
        rows.min_count = 3
    with pytest.raises(ValueError, match="min_count and exclude beside a RowSelection"):
        RowSelection.of(rows, min_count=2, exclude=[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_count": 10}, "no token is left to fit on: 0 of 8 ids are counted 10 times or more, 0 are excluded"),
        ({"exclude": range(8)}, "7 of 8 ids are counted 1 times or more, 8 are excluded"),
        ({"min_count": 0}, "min_count is 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"exclude": [8]}, "excluded ids"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, "the mask has 3 entries"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_all_alike(settings, message):
    for make in (th.RowSelection, th.FrequencyProbe, th.ProbabilityProbe, th.LeadParts):
        with pytest.raises(ValueError, match=message):
            make(COUNTS, **settings)


def test_without_counts_no_min_count_and_no_frequency():
    assert RowSelection(None, exclude=[0], vocab_size=3).for_rows(4).mask.tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="min_count is 2, but there are no counts"):
        RowSelection(None, min_count=2)
    for refuses in (th.FrequencyProbe, th.LeadParts, lambda rows: th.CovariateBaseline(rows, ["a"] * 8)):
        with pytest.raises(ValueError, match="there are no counts"):
            refuses(None)
    with pytest.raises(ValueError, match="pass counts"):
        RowSelection(None).fitted(8)


def test_counts_that_do_not_fit_are_an_error_of_settings():
    with pytest.raises(SettingsError, match=r"8 entries; the output embedding has 9 rows"):
        RowSelection(COUNTS).for_rows(9)
    with pytest.raises(SettingsError, match="the mask has 8 entries"):
        RowSelection(None, mask=torch.ones(8, dtype=torch.bool)).for_rows(9)


def test_a_matrix_may_exclude_its_padding():
    counts = th.TokenCounts(COUNTS, documents=3)
    rows = rows_of_matrix(counts, vocab=10, exclude=[9, 0], vocab_size=8)
    assert (rows.exclude, rows.vocab_size, len(rows.counts)) == ((9, 0), None, 10)
    assert rows.token_counts is counts
    again = rows_of_matrix(RowSelection(counts, exclude=[0], vocab_size=8), vocab=10)
    assert torch.equal(again.mask, rows.mask)
    assert again.token_counts is counts


def test_it_travels_without_tensors():
    rows = RowSelection(COUNTS, min_count=2, exclude=[4])
    assert not any(isinstance(value, torch.Tensor) for value in rows.__getstate__().values())
    back = pickle.loads(pickle.dumps(rows))
    assert (back.min_count, back.exclude) == (2, (4,))
    assert torch.equal(back.mask, rows.mask)


def test_what_a_store_says_of_them():
    assert settings_of_run({"min_count": 3, "excluded_tokens": [1, 2]}) == {"min_count": 3, "exclude": (1, 2)}
    assert settings_of_run({}) == {"min_count": 1, "exclude": ()}


def _series(tmp_path, name, **settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("embed", torch.nn.Embedding(10, 4))
    model.add_module("lm_head", torch.nn.Linear(4, 10))
    with th.Recorder(model, store=tmp_path / name, **settings) as recorder:
        recorder.begin_step()
        recorder.after_update(loss=1.0)
    store = th.open_store(tmp_path / name)
    names = sorted(name for name in store.names if not name.startswith("recorder."))
    return {name: store[name].tobytes() for name in names}, store


def test_a_recorder_measures_the_same_by_selection_as_by_keywords(tmp_path):
    counts = th.TokenCounts(COUNTS, corpus_hash="ab", rule="all")
    settings = {"min_count": 2, "exclude": [4], "vocab_size": 8}
    plain, one = _series(tmp_path, "plain", counts=counts, **settings)
    chosen, other = _series(tmp_path, "chosen", counts=th.RowSelection(counts, **settings))
    assert plain == chosen
    assert other.token_counts.tolist() == [*COUNTS.tolist(), 0, 0]
    for name in ("min_count", "excluded_tokens", "corpus_hash"):
        assert one.attributes[name] == other.attributes[name]
    assert other.attributes["excluded_tokens"] == [4]


def test_reports_and_texts_take_one(tmp_path):
    torch.manual_seed(1)
    embedding = torch.randn(10, 2)
    settings = {"min_count": 2, "exclude": [4], "vocab_size": 8}
    one = report_matrix(embedding, counts=COUNTS, draws=0, **settings)
    other = report_matrix(embedding, counts=RowSelection(COUNTS, **settings), draws=0)
    assert one.render() == other.render()
    assert (other.vocab_size, other.min_count, other.excluded) == (8, 2, (4,))
    text = TextProbe("text.txt", counts=COUNTS, min_count=2, exclude=(4,), vocab_size=8)
    assert torch.equal(text.rows.mask, TextProbe("text.txt", counts=RowSelection(COUNTS, **settings)).rows.mask)
    with pytest.raises(ValueError, match="min_count is 0"):
        TextProbe("text.txt", counts=COUNTS, min_count=0)
