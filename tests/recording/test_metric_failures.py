"""A metric that raises or returns what it did not declare: said once, NaN from there, training goes on."""

import warnings

import numpy as np
import pytest
import torch
from loops import VOCAB, TinyLM, batches, train

import trainhooks as th

COUNTS = np.bincount(batches(30).flatten().numpy(), minlength=VOCAB)


class Own(th.Metric):
    variables = (th.Variable("own.norm"), th.Variable("own.parts", dims=("part",), sizes={"part": 2}))

    def __init__(self, *, at: int | None = None, error: Exception | None = None, returns=None, moment="after_update"):
        self.at, self.error, self.returns, self.moment = at, error, returns, moment

    def compute(self, state):
        if state.step == self.at:
            raise self.error
        return self.returns or {"own.norm": 2.0, "own.parts": torch.tensor([1.0, 3.0])}


def recorded(metric, *, updates=5, **settings):
    memory = th.MemorySink()
    model = TinyLM()
    with th.Recorder(model, extra_metrics=[metric], counts=COUNTS, sinks=[memory], **settings) as recorder:
        train(model, batches(updates), recorder)
    return memory.records, model


@pytest.mark.parametrize("moment", ["after_update", "before_update"])
def test_a_metric_that_raises_is_said_once_and_nan_from_there(moment):
    with pytest.warns(RuntimeWarning, match=r"step 3: Own raised RuntimeError: boom.*strict=True") as said:
        records, model = recorded(Own(at=3, error=RuntimeError("boom"), moment=moment))
    assert len(said) == 1
    have = [record.step for record in records if "own.norm" in record.values]
    assert have == [step for step in (0, 1, 2) if step or moment == "after_update"]
    assert all("probe.heldout_r2" in record.values for record in records), "the others go on"
    assert len(records) == 6
    _, bare = recorded(Own())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), bare.parameters(), strict=True))


def test_strict_stops():
    with pytest.raises(RuntimeError, match="boom"):
        recorded(Own(at=3, error=RuntimeError("boom")), strict=True)
    with pytest.raises(ValueError, match=r"step 0: a metric returned 'own.typo'"):
        recorded(Own(returns={"own.typo": 1.0}), strict=True)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ({"own.typo": 1.0, "own.norm": 2.0}, r"step 0: .*'own.typo' of shape \[\]; .*none declares it"),
        ({"own.parts": torch.zeros(3), "own.norm": 2.0}, r"step 0: .*'own.parts' of shape \[3\]; needed shape \[2\]"),
    ],
)
def test_values_that_were_not_declared_are_left_out(returned, said, tmp_path):
    with pytest.warns(RuntimeWarning, match=said) as warned:
        records, _ = recorded(Own(returns=returned), store=tmp_path / "run.zarr")
    assert len(warned) == 1
    assert [float(record.values["own.norm"]) for record in records] == [2.0] * 6
    assert np.isnan(th.open_store(tmp_path / "run.zarr")["own.parts"]).all()


def test_settings_that_do_not_fit_are_errors_at_the_first_record():
    with pytest.raises(ValueError, match="entries"):
        recorded(th.LeadParts(np.arange(1, 30)))


def test_extra_metrics_stand_beside_the_defaults_or_the_given_ones():
    records, _ = recorded(Own())
    assert {"own.norm", "probe.heldout_r2", "convergence.norm"} <= set(records[-1].values)
    records, _ = recorded(Own(), metrics=[])
    assert "probe.heldout_r2" not in records[-1].values


def test_every_vector_reaches_loggers_under_labels_of_its_own():
    """Never by its length: five groups and five folds are two things."""
    records, _ = recorded(Own())
    scalars = records[-1].scalars
    assert {tag for tag in scalars if "fold_intercept" in tag} == {f"probe/fold_intercept/{fold}" for fold in range(5)}
    assert (scalars["own/parts/0"], scalars["own/parts/1"]) == (1.0, 3.0)
    groups = records[-1].groups
    assert {tag for tag in scalars if "convergence/norm/" in tag} == {f"convergence/norm/{group}" for group in groups}
    drawn = {tag.replace("/", ".") for tag in scalars}
    vectors = {name: value for name, value in records[-1].values.items() if value.ndim == 1}
    left = {name for name in vectors if not any(tag.startswith(f"{name}.") for tag in drawn)}
    along_dim = {"probe.slope", "spectrum.folded_singular_values", "spectrum.singular_values"}
    assert left == along_dim, "the model's own axis: no curve each"
    assert {tag.replace("/", ".") for tag in records[-1].vectors} == along_dim, "but whole"


def test_named_entries_and_a_vector_as_long_as_the_groups():
    class Named(th.Metric):
        variables = (th.Variable("own.two", dims=("side",), sizes={"side": 4}, labels=("a", "b", "c", "d")),)

        def compute(self, state):
            return {"own.two": torch.arange(4.0)}

    records, _ = recorded(Named())
    assert [records[0].scalars[f"own/two/{label}"] for label in "abcd"] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="one for each entry"):
        th.Variable("own.two", dims=("side",), sizes={"side": 3}, labels=("a", "b"))


def test_mistakes_are_refused_when_the_recorder_is_made():
    for settings, said in [
        ({"budget": 2}, "such as 0.02"),
        ({"precision": "fp16"}, "not known"),
        ({"sinks": ["events"]}, "instances of th.Sink"),
        ({"sinks": "events"}, "list of sinks"),
        ({"sinks": th.MemorySink()}, "list of sinks"),
        ({"extra_metrics": [th.ProbabilityProbe]}, "call the class"),
    ]:
        with pytest.raises(ValueError, match=said):
            th.Recorder(TinyLM(), **settings)
    with pytest.raises(ValueError, match=r"instances of th\.Sink"):
        th.Recorder(TinyLM()).add_sink("events")


def test_default_metrics_take_token_counts():
    metrics = th.default_metrics(th.TokenCounts(COUNTS))
    assert [type(a) for a in metrics] == [type(b) for b in th.default_metrics(COUNTS)]


def test_the_old_name_of_a_result_still_works():
    with pytest.warns(DeprecationWarning, match="AverageProbabilityResult"):
        assert th.AverageProbability is th.AverageProbabilityResult
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "AverageProbability" not in dir(th)
