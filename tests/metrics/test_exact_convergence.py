from dataclasses import replace

import numpy as np
import pytest
import torch
from metric_states import Tiny, make_state
from naive_metrics import draw

from trainhooks.metrics.exact_convergence import ExactConvergence, reference_bytes
from trainhooks.numerics.distances import squared_distances


def flat(tensors) -> np.ndarray:
    return torch.cat([t.detach().flatten() for t in tensors]).double().numpy().copy()


def record(model: Tiny, step: int, **more):
    return replace(make_state(model=model, step=step), **more)


def nudge(model: Tiny, seed: int) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.2 * draw(*parameter.shape, seed=50 * seed + i))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_squared_distances_match_their_twin(dtype, monkeypatch):
    monkeypatch.setattr("trainhooks.numerics.distances.SLAB", 100)
    now = [draw(40, 7).to(dtype), draw(3, seed=1).to(dtype), torch.zeros(0, dtype=dtype)]
    then = [draw(40, 7, seed=2).to(dtype), draw(3, seed=3).to(dtype), torch.zeros(0, dtype=dtype)]
    expected = [float((a.double() - b.double()).square().sum()) for a, b in zip(now, then, strict=True)]
    np.testing.assert_allclose(squared_distances(now, then).numpy(), expected, rtol=1e-6)
    assert squared_distances([], []).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matches_its_twin_over_a_run(dtype):
    model = Tiny(50, 6).to(dtype)
    metric = ExactConvergence(["whole", "norm"], patterns=["block.*", "*.bias"])
    selected = [
        list(model.parameters()),
        list(model.norm.parameters()),
        list(model.block.parameters()),
        [model.block.bias, model.norm.bias],
    ]
    history = []
    for step in range(4):
        if step:
            nudge(model, step)
        history.append([flat(tensors) for tensors in selected])
        result = metric.compute(record(model, step, learning_rate_sum=0.25))
    assert set(result) == {variable.name for variable in metric.variables}
    assert all(variable.sizes == {"exact": 4} for variable in metric.variables)
    norm = np.linalg.norm
    for i in range(4):
        a, b, c = history[3][i], history[2][i], history[0][i]
        expected = {
            "norm": norm(a),
            "relative_step": norm(a - b) / norm(a),
            "step_per_learning_rate": 4 * norm(a - b) / norm(a),
            "cosine_to_previous": a @ b / norm(a) / norm(b),
            "distance_to_initial": norm(a - c) / norm(c),
            "cosine_to_initial": a @ c / norm(a) / norm(c),
        }
        for name, value in expected.items():
            assert float(result[f"exact_convergence.{name}"][i]) == pytest.approx(value, rel=1e-5), name


def test_first_record():
    result = ExactConvergence(["head"]).compute(make_state())
    assert set(result) == {f"exact_convergence.{n}" for n in ("norm", "distance_to_initial", "cosine_to_initial")}
    assert float(result["exact_convergence.distance_to_initial"][0]) == 0
    assert float(result["exact_convergence.cosine_to_initial"][0]) == pytest.approx(1)


def test_a_run_joined_late_does_not_know_its_start():
    model = Tiny(20, 4)
    metric = ExactConvergence(["head"])
    metric.compute(record(model, 7))
    nudge(model, 1)
    result = metric.compute(record(model, 8))
    assert "exact_convergence.relative_step" in result
    assert "exact_convergence.distance_to_initial" not in result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restart_from_a_state_goes_on_as_if_it_had_never_stopped(dtype, tmp_path):
    model = Tiny(20, 4).to(dtype)
    whole = ExactConvergence(["head"], patterns=["block.*"])
    for step in (0, 1):
        nudge(model, step)
        whole.compute(record(model, step))
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    again = ExactConvergence(["head"], patterns=["block.*"])
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.state_dict().keys() == {"initial", "previous"}  # saved again before a record: nothing is lost
    for step in (2, 3):
        nudge(model, step)
        expected, found = (metric.compute(record(model, step, learning_rate_sum=0.5)) for metric in (whole, again))
        assert set(expected) == set(found) == {variable.name for variable in whole.variables}
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_state_is_a_point_in_time():
    model = Tiny(20, 4)
    metric = ExactConvergence(["head"])
    metric.compute(record(model, 0))
    state, before = metric.state_dict(), flat(model.head.parameters())
    nudge(model, 1)
    metric.compute(record(model, 1))
    np.testing.assert_array_equal(flat(state["previous"]["tensors"]), before)


def test_a_state_of_other_parameters_is_refused():
    metric, other = ExactConvergence(["head"]), ExactConvergence(["head"])
    metric.compute(record(Tiny(20, 4), 0))
    other.load_state_dict(metric.state_dict())
    with pytest.raises(ValueError, match=r"\(20, 4\).*\(21, 4\).*same model"):
        other.compute(record(Tiny(21, 4), 1))
    fresh = ExactConvergence(["head"])
    fresh.load_state_dict(fresh.state_dict())  # saved before its first record
    assert "exact_convergence.distance_to_initial" in fresh.compute(record(Tiny(20, 4), 0))


def test_growth_frozen_zero_and_nan():
    model = Tiny(20, 4)
    torch.nn.init.zeros_(model.norm.bias)
    metric = ExactConvergence(["head", "embedding"], patterns=["norm.bias", "block.bias"])
    first = metric.compute(record(model, 0))
    assert first["exact_convergence.distance_to_initial"][2].isnan()
    with torch.no_grad():
        model.head.weight.mul_(2)
        model.block.bias[0] = float("nan")
    result = metric.compute(record(model, 1))
    assert result["exact_convergence.relative_step"][:2].tolist() == pytest.approx([0.5, 0])
    assert result["exact_convergence.cosine_to_previous"][:2].tolist() == pytest.approx([1, 1])
    assert result["exact_convergence.relative_step"][2:].isnan().all()
    assert result["exact_convergence.norm"][2] == 0


def test_copies_are_apart_from_the_model_and_change_nothing_in_it():
    model = Tiny(20, 4)
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    metric = ExactConvergence(["whole"])
    metric.compute(record(model, 0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_bytes_count_each_parameter_once():
    weight = torch.zeros(10, 3)
    assert reference_bytes([weight, weight, torch.zeros(5, dtype=torch.bfloat16)]) == 2 * (120 + 10)


def test_what_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="follows nothing"):
        ExactConvergence()
    with pytest.raises(ValueError, match="wrap a single one"):
        ExactConvergence("head")
    with pytest.raises(ValueError, match=r"\['layers.9'\]; there are whole, embedding"):
        ExactConvergence(["layers.9"]).compute(make_state())
    with pytest.raises(ValueError, match=r"no parameter matches 'attention\*'.*embedding.weight"):
        ExactConvergence(patterns=["attention*"]).compute(make_state())
