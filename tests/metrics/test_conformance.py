"""Every metric keeps what `Metric` promises; one that is new is found, and must bring its settings here."""

import warnings

import numpy as np
import pytest
import torch
from loops import COUNTS, VOCAB, TinyLM, batches, train
from metric_conformance import (
    Case,
    assert_same_bits,
    check_asked_twice,
    check_declaration,
    check_device_path,
    check_finite,
    check_message,
    check_refusal,
    check_state_round_trip,
    check_training_untouched,
    check_values,
    metric_classes,
    trajectory,
)

import trainhooks as th
from trainhooks.core.errors import SettingsError

SHORT = VOCAB - 7
LENGTHS = (str(SHORT), str(VOCAB))
MASK = torch.arange(VOCAB) >= 2
COUNTED = torch.from_numpy(np.geomspace(1, 5000, VOCAB).astype(np.int64))
NEVER = np.where(np.arange(VOCAB) % 5, COUNTS, 0)
TEXTS = ["a" * (1 + token % 7) if token % 3 else f" b{token}" for token in range(VOCAB)]

GEOMETRY = {
    f"geometry.{name}": ("first", "what compares with the previous one is NaN")
    for name in ("relative_step", "radial_step", "angular_step", "cosine_to_previous", "cka_to_previous")
}
DRIFT = {"probe.drift": ("first", "NaN at the first")}
CONVERGENCE = {
    "convergence.relative_step": ("first", "NaN at the first record"),
    "convergence.cosine_to_previous": ("first", "NaN at the first record"),
    "convergence.step_per_learning_rate": ("first", "NaN where that is unknown or 0"),
}
EXACT = {
    "exact_convergence.relative_step": ("first", "NaN at the first"),
    "exact_convergence.cosine_to_previous": ("first", "s the previous record"),
    "exact_convergence.step_per_learning_rate": ("first", "since the previous record"),
}
TRANSFER = {"probability.transfer_r2": ("first", "slopes of the record before")}


def short_counts(make):
    return {"counts of another model": (make, LENGTHS)}


CASES = {
    "FrequencyProbe": Case(
        lambda: th.FrequencyProbe(COUNTS), nan=DRIFT, unfit=short_counts(lambda: th.FrequencyProbe(COUNTS[:SHORT]))
    ),
    "FrequencyProbe, never-labels": Case(lambda: th.FrequencyProbe(NEVER, exclude=[3]), nan=DRIFT),
    "CovariateBaseline": Case(
        lambda: th.CovariateBaseline(COUNTS, TEXTS),
        unfit=short_counts(lambda: th.CovariateBaseline(COUNTS[:SHORT], TEXTS)),
    ),
    "Spectrum": Case(th.Spectrum, unfit={"a mask of another model": (lambda: th.Spectrum(mask=MASK[:SHORT]), LENGTHS)}),
    "Spectrum, masked": Case(lambda: th.Spectrum(mask=MASK)),
    "HeadGeometry": Case(
        th.HeadGeometry,
        nan=GEOMETRY,
        unfit={
            "a mask of another model": (lambda: th.HeadGeometry(mask=MASK[:SHORT]), LENGTHS),
            **short_counts(lambda: th.HeadGeometry(counts=COUNTED[:SHORT])),
        },
    ),
    "HeadGeometry, by count": Case(lambda: th.HeadGeometry(mask=MASK, counts=COUNTED), nan=GEOMETRY),
    "GroupConvergence": Case(th.GroupConvergence, nan=CONVERGENCE),
    "ExactConvergence": Case(
        lambda: th.ExactConvergence(["whole", "output_embedding"], patterns=["layers.*"]),
        nan=EXACT,
        unfit={
            "a group of another model": (lambda: th.ExactConvergence(["decoder"]), ("decoder", "whole")),
            "a pattern of another model": (
                lambda: th.ExactConvergence(patterns=["decoder.*"]),
                ("decoder.*", "embed.weight"),
            ),
        },
    ),
    "LeadParts": Case(
        lambda: th.LeadParts(COUNTS),
        nan={"lead.frequency_share": ("first", "share is NaN")},
        unfit=short_counts(lambda: th.LeadParts(COUNTS[:SHORT])),
    ),
    "ProbabilityProbe": Case(
        th.ProbabilityProbe,
        nan=TRANSFER,
        unfit={"a mask of another model": (lambda: th.ProbabilityProbe(mask=MASK[:SHORT]), LENGTHS)},
    ),
    "ProbabilityProbe, channels": Case(
        lambda: th.ProbabilityProbe(COUNTS),
        nan=TRANSFER | {"channel.norm_bias": ("first", "NaN without a norm bias or with a zero one")},
        unfit=short_counts(lambda: th.ProbabilityProbe(COUNTS[:SHORT])),
    ),
}
FITS_ANY_MODEL = {th.GroupConvergence}
"""It has no setting that could be another model's."""
UNFIT = [(name, what) for name, case in CASES.items() for what in case.unfit]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def moments(request):
    return trajectory(request.param)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_no_metric_is_forgotten():
    missing = metric_classes() - {case.metric for case in CASES.values()}
    assert not missing, f"give these a case in CASES: {sorted(metric.__name__ for metric in missing)}"
    unrefused = metric_classes() - FITS_ANY_MODEL - {CASES[name].metric for name, _ in UNFIT}
    assert not unrefused, f"what does not fit a model? {sorted(metric.__name__ for metric in unrefused)}"


def test_its_declaration_is_whole(case):
    check_declaration(case)


def test_it_gives_what_it_declares(case, moments):
    check_values(case, moments)


def test_it_is_finite_or_says_where_not(case, moments):
    check_finite(case, moments)


def test_it_answers_a_state_with_the_same_bits(case, moments):
    check_asked_twice(case, moments)


def test_what_travels_is_concluded_to_the_same_bits(case, moments):
    check_device_path(case, moments)


def test_it_leaves_training_as_it_was(case, moments):
    check_training_untouched(case, moments)


def test_its_state_goes_on_to_the_bit(case, moments):
    check_state_round_trip(case, moments)


@pytest.mark.parametrize(("name", "what"), UNFIT, ids=[f"{name}: {what}" for name, what in UNFIT])
def test_what_does_not_fit_is_refused_at_the_first_record(name, what, moments):
    make, words = CASES[name].unfit[what]
    check_refusal(make(), words, moments)


# -- in a run --------------------------------------------------------------------------------------------------


def recorded(metric, *, model, data, first=0, state=None, optimizer=None):
    """The losses of a run, the records, and the recorder's state behind it."""
    memory = th.MemorySink()
    with th.Recorder(model, metrics=[metric], sinks=[memory], strict=True) as recorder:
        if state is not None:
            recorder.load_state_dict(state)
        losses = train(model, data, recorder, first=first, optimizer=optimizer)
        return losses, memory.records, recorder.state_dict()


def own(records, metric):
    """A metric's values by record."""
    names = {variable.name for variable in metric.variables}
    return [{name: value for name, value in record.values.items() if name in names} for record in records]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_run_is_the_same_with_it_and_goes_on_to_the_bit(case, dtype):
    data = batches(4)
    torch.manual_seed(3)
    bare = train(TinyLM().to(dtype), data)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    metric = case.make()
    losses, whole, _ = recorded(metric, model=TinyLM().to(dtype), data=data)
    assert losses == bare, "recording changed training"
    assert torch.equal(torch.rand(3), drawn), "recording drew random numbers"
    declared = {variable.name: variable.dtype for variable in metric.variables}
    for values in own(whole, metric):
        rounded = [
            name for name, x in values.items() if not np.array_equal(x.astype(declared[name]), x, equal_nan=True)
        ]
        assert not rounded, "a record holds what the store will"
    assert {name for values in own(whole, metric) for name in values} == {v.name for v in metric.variables}

    model = TinyLM().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    _, begun, state = recorded(case.make(), model=model, data=data[:2], optimizer=optimizer)
    _, rest, _ = recorded(case.make(), model=model, data=data, first=2, state=state, optimizer=optimizer)
    assert_same_bits(own([*begun, *rest], metric), own(whole, metric), "stopped after two updates")


@pytest.mark.parametrize(("name", "what"), UNFIT, ids=[f"{name}: {what}" for name, what in UNFIT])
def test_a_recorder_refuses_what_does_not_fit_before_a_parameter_moves(name, what):
    make, words = CASES[name].unfit[what]
    model = TinyLM()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SettingsError) as refused, th.Recorder(model, metrics=[make()]) as recorder:
            train(model, batches(2), recorder)
    check_message(str(refused.value), words)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
