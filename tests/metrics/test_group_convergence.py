import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from metric_states import Tiny, after, make_state
from naive_metrics import draw

from trainhooks.metrics.group_convergence import (
    FINAL_VARIABLES,
    LIVE_VARIABLES,
    GroupConvergence,
    convergence_to_final,
    log_lag_cosine,
)
from trainhooks.numerics.sketch import sketch_parameter, standard_error

GROUPS = ("whole", "embedding", "block", "norm", "head")


def run(moves, *, vocab: int = 400, dim: int = 24, learning_rate_sum=0.5):
    """States of a run whose record i is reached by `moves[i](model)`, and the parameters at each."""
    model = Tiny(vocab, dim)
    states, kept = [make_state(model=model)], []
    kept.append({g: torch.cat([t.detach().flatten() for t in ts]).clone() for g, ts in states[0].groups.items()})
    for step, move in enumerate(moves, start=1):
        with torch.no_grad():
            move(model)
        states.append(after(states[-1], initial=states[0], model=model, step=step, learning_rate_sum=learning_rate_sum))
        kept.append({g: torch.cat([t.detach().flatten() for t in ts]).clone() for g, ts in states[-1].groups.items()})
    return states, kept


def nudge(model: Tiny) -> None:
    for seed, parameter in enumerate(model.parameters()):
        parameter.add_(0.3 * draw(*parameter.shape, seed=100 + seed))


def twin(now: torch.Tensor, before: torch.Tensor, start: torch.Tensor) -> dict[str, float]:
    a, b, c = (x.double().numpy() for x in (now, before, start))
    norm = np.linalg.norm
    return {
        "norm": norm(a),
        "relative_step": norm(a - b) / norm(a),
        "cosine_to_previous": a @ b / norm(a) / norm(b),
        "distance_to_initial": norm(a - c) / norm(c),
        "cosine_to_initial": a @ c / norm(a) / norm(c),
        "step_per_learning_rate": norm(a - b) / norm(a) / 0.5,
    }


def test_matches_its_twin_within_the_stated_error():
    states, kept = run([nudge, lambda m: m.head.weight.mul_(1.5)])
    result = GroupConvergence().compute(states[2])
    assert set(result) == {variable.name for variable in LIVE_VARIABLES}
    for g, group in enumerate(GROUPS):
        expected = twin(kept[2][group], kept[1][group], kept[0][group])
        assert float(result["convergence.norm"][g]) == pytest.approx(expected["norm"], rel=1e-6)
        for name in ("relative_step", "distance_to_initial", "step_per_learning_rate"):
            assert float(result[f"convergence.{name}"][g]) == pytest.approx(expected[name], rel=5 * standard_error())
        for name in ("cosine_to_previous", "cosine_to_initial"):
            error = 5 * (1 - expected[name] ** 2) / math.sqrt(1021) + 1e-5
            assert float(result[f"convergence.{name}"][g]) == pytest.approx(expected[name], abs=error)


def test_first_record_has_no_previous_one():
    result = GroupConvergence().compute(make_state())
    assert set(result) == {"convergence.norm", "convergence.distance_to_initial", "convergence.cosine_to_initial"}
    assert result["convergence.distance_to_initial"].tolist() == [0.0] * 5
    torch.testing.assert_close(result["convergence.cosine_to_initial"], torch.ones(5, dtype=torch.float64))


def test_growth_and_frozen_groups():
    states, _ = run([lambda m: m.head.weight.mul_(2)])
    result = GroupConvergence().compute(states[1])
    assert float(result["convergence.relative_step"][4]) == pytest.approx(0.5, rel=5 * standard_error())
    assert float(result["convergence.cosine_to_previous"][4]) == pytest.approx(1)
    assert float(result["convergence.distance_to_initial"][4]) == pytest.approx(1)
    for frozen in (1, 2, 3):
        assert float(result["convergence.relative_step"][frozen]) == 0
        assert float(result["convergence.cosine_to_previous"][frozen]) == pytest.approx(1)


def test_scale_of_all_parameters_changes_nothing_but_the_norm():
    states, _ = run([nudge])
    grown = replace(
        states[1],
        groups={g: [7 * t for t in ts] for g, ts in states[1].groups.items()},
        **{name: 7 * getattr(states[1], name) for name in ("sketch", "initial_sketch", "previous_sketch")},
    )
    first, second = GroupConvergence().compute(states[1]), GroupConvergence().compute(grown)
    for name, value in first.items():
        factor = 7 if name == "convergence.norm" else 1
        torch.testing.assert_close(second[name], factor * value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [None, 0.0])
def test_unknown_learning_rate_is_left_out(rate):
    states, _ = run([nudge], learning_rate_sum=rate)
    assert "convergence.step_per_learning_rate" not in GroupConvergence().compute(states[1])


def test_group_that_starts_at_zero():
    model = Tiny(30, 4)
    torch.nn.init.zeros_(model.block.weight)
    torch.nn.init.zeros_(model.block.bias)
    first = make_state(model=model)
    result = GroupConvergence().compute(first)
    assert float(result["convergence.norm"][2]) == 0
    assert result["convergence.distance_to_initial"][2].isnan()
    with torch.no_grad():
        model.block.bias.fill_(1)
    result = GroupConvergence().compute(after(first, initial=first, model=model, step=1))
    assert float(result["convergence.relative_step"][2]) == pytest.approx(1, rel=5 * standard_error())
    assert result["convergence.cosine_to_previous"][2].isnan()
    assert result["convergence.distance_to_initial"][2].isnan()


def test_nan_weights_stay_in_their_groups():
    states, _ = run([lambda m: m.block.bias.fill_(float("nan"))])
    for name, value in GroupConvergence().compute(states[1]).items():
        assert value[[0, 2]].isnan().all(), name
        assert value[[1, 3, 4]].isfinite().all(), name


def test_a_state_without_sketch_is_refused():
    with pytest.raises(ValueError, match="make the State with sketch="):
        GroupConvergence().compute(replace(make_state(), sketch=None))


def walk(kind: str, records: int = 33, size: int = 4000) -> torch.Tensor:
    """Trajectories [record, 1, element]: a straight line, a random walk, or nothing moving."""
    start = draw(1, size)
    if kind == "frozen":
        return start.expand(records, 1, size).clone()
    if kind == "line":
        return (start + torch.arange(records).unsqueeze(1) * draw(1, size, seed=1) / 10).unsqueeze(1)
    steps = draw(records - 1, size, seed=2)
    return torch.cat([start, start + steps.cumsum(dim=0)]).unsqueeze(1)


def final_twin(theta: np.ndarray, steps: list[int]) -> dict[str, np.ndarray]:
    """theta [record, element], record by record."""
    norm, last, start = np.linalg.norm, theta[-1], theta[0]
    out = {name: [] for name in ("distance_to_final", "unit_distance_to_final", "cosine_to_final", "log_lag_cosine")}
    for t, x in zip(steps, theta, strict=True):
        out["distance_to_final"].append(norm(x - last) / norm(last))
        out["unit_distance_to_final"].append(norm(x / norm(x) - last / norm(last)))
        out["cosine_to_final"].append(x @ last / norm(x) / norm(last))
        lag = math.nan
        if t > 0 and 2 * t in steps:
            a, b = x - start, theta[steps.index(2 * t)] - start
            lag = a @ b / norm(a) / norm(b)
        out["log_lag_cosine"].append(lag)
    return {name: np.array(value) for name, value in out.items()}


@pytest.mark.parametrize("kind", ["line", "walk"])
def test_to_final_matches_its_twin_on_whole_vectors(kind, monkeypatch):
    monkeypatch.setattr("trainhooks.metrics.group_convergence.RECORDS_AT_ONCE", 5)
    theta = walk(kind)
    result = convergence_to_final(theta, torch.arange(33))
    assert set(result) == {variable.name for variable in FINAL_VARIABLES}
    for name, expected in final_twin(theta[:, 0].numpy(), list(range(33))).items():
        np.testing.assert_allclose(result[f"convergence.{name}"][:, 0].numpy(), expected, atol=1e-7)


def test_to_final_from_sketches_is_within_the_stated_error():
    theta = walk("walk", size=40_000)
    sketches = torch.stack([sketch_parameter(record[0], name="w") for record in theta]).unsqueeze(1)
    result = convergence_to_final(sketches, torch.arange(33))
    expected = final_twin(theta[:, 0].numpy(), list(range(33)))
    for name in ("distance_to_final", "unit_distance_to_final"):
        np.testing.assert_allclose(
            result[f"convergence.{name}"][:, 0].numpy(), expected[name], rtol=5 * standard_error(), atol=1e-6
        )
    for name in ("cosine_to_final", "log_lag_cosine"):
        np.testing.assert_allclose(
            result[f"convergence.{name}"][:, 0].numpy(), expected[name], atol=5 / math.sqrt(1021)
        )


def test_log_lag_known_answers():
    lags = log_lag_cosine(walk("line"), torch.arange(33))[1:17, 0]
    np.testing.assert_allclose(lags.numpy(), 1)
    lags = log_lag_cosine(walk("walk", size=100_000), torch.arange(33))[1:17, 0]
    np.testing.assert_allclose(lags.numpy(), math.sqrt(0.5), atol=0.02)


def test_log_lag_on_a_sparse_grid_and_without_a_start():
    steps = torch.tensor([0, 1, 2, 5, 10, 32])
    known = log_lag_cosine(walk("line", records=6), steps)[:, 0].isfinite()
    assert known.tolist() == [False, True, False, True, False, False]
    assert log_lag_cosine(walk("line", records=6), steps + 1).isnan().all()


def test_to_final_does_not_depend_on_scale_or_frame():
    theta = walk("walk", size=50)
    q = torch.linalg.qr(draw(50, 50, seed=3))[0]
    first, second = (convergence_to_final(x, torch.arange(33)) for x in (theta, 4 * theta @ q))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, equal_nan=True, rtol=0, atol=1e-7)


def test_to_final_of_frozen_zero_and_broken_groups():
    frozen, zero = walk("frozen", records=5), torch.zeros(5, 1, 4000, dtype=torch.float64)
    broken = walk("walk", records=5)
    broken[-1] = float("nan")
    result = convergence_to_final(torch.cat([frozen, zero, broken], dim=1), torch.arange(5))
    assert result["convergence.distance_to_final"][:, 0].tolist() == [0] * 5
    np.testing.assert_allclose(result["convergence.cosine_to_final"][:, 0].numpy(), 1)
    assert result["convergence.log_lag_cosine"][:, 0].isnan().all()
    for name, value in result.items():
        assert value[:, 1].isnan().all(), name
        if name != "convergence.log_lag_cosine":
            assert value[:, 2].isnan().all(), name
    assert result["convergence.log_lag_cosine"][1, 2].isfinite()


def test_to_final_of_no_and_of_one_record():
    empty = convergence_to_final(torch.zeros(0, 2, 11), torch.zeros(0, dtype=torch.int64))
    assert {value.shape for value in empty.values()} == {(0, 2)}
    single = convergence_to_final(draw(1, 2, 11), torch.tensor([0]))
    assert single["convergence.distance_to_final"].tolist() == [[0, 0]]


def test_steps_are_checked():
    with pytest.raises(ValueError, match="3 records of sketches and 2 steps"):
        convergence_to_final(draw(3, 1, 5), torch.arange(2))
    with pytest.raises(ValueError, match="must rise"):
        convergence_to_final(draw(3, 1, 5), torch.tensor([0, 2, 2]))


def test_distances_have_the_error_that_is_stated():
    """1/sqrt(2k) where the exact norm divides, more where the sketch's own does."""
    size, runs, dim = 251, 400, 3000
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, runs, dim, generator=generator, dtype=torch.float64)
    end = start + 0.7 * end
    signs = torch.randint(0, 2, (runs, dim), generator=generator, dtype=torch.float64) * 2 - 1
    buckets = torch.randint(0, size, (runs, dim), generator=generator)
    sketches = torch.stack(
        [torch.zeros(runs, size, dtype=torch.float64).scatter_add_(1, buckets, signs * x) for x in (start, end)]
    )
    norms = torch.stack([torch.linalg.vector_norm(x, dim=1) for x in (start, end)])
    truth = torch.linalg.vector_norm(end - start, dim=1) / norms[1]
    stated = (2 * size) ** -0.5

    def error(**given):
        found = convergence_to_final(sketches, torch.arange(2), **given)["convergence.distance_to_final"][0]
        return float((found / truth - 1).square().mean().sqrt()) / stated

    assert 0.9 < error(norms=norms) < 1.1
    assert error() > 1.12
    assert error(norms=torch.full_like(norms, torch.nan)) == error()


def test_the_initial_norm_is_the_exact_one_and_travels_in_the_state():
    states, _ = run([lambda m: m.block.weight.mul_(1.5)] * 2)
    metric = GroupConvergence()
    found = [metric.compute(state)["convergence.distance_to_initial"] for state in states]
    sketch = [state.sketch.double() for state in states]
    exact = GroupConvergence().compute(states[0])["convergence.norm"].double()
    expected = torch.linalg.vector_norm(sketch[2] - sketch[0], dim=-1) / exact
    torch.testing.assert_close(found[2].double(), expected, rtol=1e-5, atol=1e-7)
    resumed = GroupConvergence()
    resumed.load_state_dict(metric.state_dict())
    assert torch.equal(resumed.compute(states[2])["convergence.distance_to_initial"], found[2])
    unknown = GroupConvergence()  # a state of an older version
    unknown.load_state_dict({})
    by_sketch = torch.linalg.vector_norm(sketch[2] - sketch[0], dim=-1) / torch.linalg.vector_norm(sketch[0], dim=-1)
    torch.testing.assert_close(
        unknown.compute(states[2])["convergence.distance_to_initial"].double(), by_sketch, rtol=1e-5, atol=1e-7
    )
