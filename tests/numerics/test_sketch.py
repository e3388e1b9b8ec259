"""Sketches: unbiased, of the promised error, additive, linear, and equal to a naive twin."""

import hashlib
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainhooks.numerics import sketch_grid, sketch_on_host
from trainhooks.numerics.hashing import splitmix64_stream
from trainhooks.numerics.sketch import (
    DEFAULT_SIZE,
    Sketcher,
    cosine,
    distance,
    sketch_parameter,
    standard_error,
)
from trainhooks.numerics.sketch_grid import ROW_PERIOD, SIGN_PERIOD

MASK = (1 << 64) - 1


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def splitmix_twin(seed: int, index: int) -> int:
    """Output number `index` (from 1), in Python's whole numbers."""
    z = (seed + index * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def sketch_twin(values: list[float], *, name: str, size: int, start: int = 0) -> np.ndarray:
    """The sketch, an element at a time, in float64."""
    digest = hashlib.blake2b(name.encode(), digest_size=24).digest()
    column, sign, row = (int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(3))
    total = np.zeros(size)
    for index, value in enumerate(values, start=start):
        q = index + column % size
        element = splitmix_twin(0x5BF03635, (q + sign % SIGN_PERIOD) % SIGN_PERIOD + 1) >> 63
        of_row = splitmix_twin(0x2545F491, (q // size + row % ROW_PERIOD) % ROW_PERIOD + 1) >> 63
        total[q % size] += value if element == of_row else -value
    return total


def test_splitmix_matches_its_twin_and_published_values():
    bits = [value & MASK for value in splitmix64_stream(1234567, length=5).tolist()]
    assert bits == [splitmix_twin(1234567, i) for i in range(1, 6)]
    assert bits[:2] == [6457827717110365317, 3203168211198807973]


@pytest.mark.parametrize(("size", "shape", "start"), [(7, (5, 9), 0), (101, (40, 33), 17), (1021, (3000,), 999_999)])
def test_sketch_matches_its_twin(size, shape, start):
    values = draw(*shape)
    fast = sketch_parameter(values, name="layers.0.weight", size=size, start=start)
    slow = sketch_twin(values.flatten().double().tolist(), name="layers.0.weight", size=size, start=start)
    np.testing.assert_allclose(fast.numpy(), slow, rtol=0, atol=1e-5)


def test_sketch_matches_its_twin_across_chunks_and_the_pool_end():
    elements = {0: 1.5, SIGN_PERIOD - 1: -2.0, SIGN_PERIOD + 3: 4.0, 3 * SIGN_PERIOD + 7: 0.5}
    values = torch.zeros(3 * SIGN_PERIOD + 8)
    slow = np.zeros(DEFAULT_SIZE)
    for index, value in elements.items():
        values[index] = value
        slow += sketch_twin([value], name="w", size=DEFAULT_SIZE, start=index)
    np.testing.assert_array_equal(sketch_parameter(values, name="w").numpy(), slow)


def one_strong_column() -> torch.Tensor:
    matrix = 0.05 * draw(256, 1021)
    matrix[:, 5] = 1 + 0.01 * draw(256)
    return matrix


def one_strong_row() -> torch.Tensor:
    matrix = 0.05 * draw(300, 256)
    matrix[7] = 1.0
    return matrix


@pytest.mark.parametrize(
    "values",
    [draw(128, 256), torch.ones(40_000), one_strong_column().T.contiguous(), one_strong_row(), 1.0 * torch.eye(200)],
    ids=["gaussian", "constant", "strong row of 1021", "strong row", "identity"],
)
def test_norm_is_unbiased_and_has_the_stated_error(values):
    squares, norms = [], []
    truth = values.double().norm()
    for draw_number in range(200):
        norm = sketch_parameter(values, name=f"layers.{draw_number}.weight").double().norm() / truth
        squares.append(float(norm**2))
        norms.append(float(norm))
    assert abs(np.mean(squares) - 1) < 4 * math.sqrt(2 / DEFAULT_SIZE / len(squares))
    # elements that never share a bucket (one short row) have no error at all; none may have more than stated
    assert np.std(norms) < 1.2 * standard_error()


def test_the_stated_error_is_not_too_large_either():
    values = draw(128, 256)
    norms = [float(sketch_parameter(values, name=f"w{i}").double().norm() / values.norm()) for i in range(200)]
    assert 0.85 * standard_error() < np.std(norms) < 1.15 * standard_error()


@pytest.mark.parametrize("width", [64, 768, 1024])
def test_a_strong_column_keeps_the_stated_error(width):
    values = 0.05 * draw(400, width)
    values[:, 3] = 1.0
    truth = values.double().norm()
    norms = [float(sketch_parameter(values, name=f"p{i}").double().norm() / truth) for i in range(120)]
    assert abs(np.mean(norms) - 1) < 4 * standard_error() / math.sqrt(len(norms))
    assert np.std(norms) < 1.25 * standard_error()


def test_a_common_mean_row_keeps_the_stated_error_beyond_the_pool():
    # without the rows' signs the pool's repeats add up: 1.8 times the stated error here, 2.4 at 50304 x 768
    values = 0.5 * draw(16384, 512) + draw(512, seed=1)
    truth = values.double().norm()
    errors = [float(sketch_parameter(values, name=f"p{i}").double().norm() / truth) - 1 for i in range(40)]
    assert math.sqrt(np.mean(np.square(errors))) < 1.4 * standard_error()


def test_distance_and_cosine_of_two_records():
    a, b = draw(300, 100), draw(300, 100, seed=1)
    later = a + 0.1 * b
    sketches = [sketch_parameter(x, name="w") for x in (a, later)]
    truth = float((later - a).norm())
    assert float(distance(*sketches)) == pytest.approx(truth, rel=4 * standard_error())
    true_cosine = float(torch.nn.functional.cosine_similarity(a.flatten(), later.flatten(), dim=0))
    assert float(cosine(*sketches)) == pytest.approx(true_cosine, abs=4 * (1 - true_cosine**2) / math.sqrt(1021))
    assert float(distance(sketches[0], sketches[0])) == 0.0
    assert float(cosine(sketches[0], -3 * sketches[0])) == -1.0
    assert math.isnan(float(cosine(sketches[0], torch.zeros(1021))))


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 60), max_size=5), width=st.integers(1, 70), size=st.sampled_from([2, 7, 101, 1021]))
def test_slices_of_rows_add_up(cuts, width, size):
    values = draw(60, width)
    edges = [0, *sorted(cuts), 60]
    pieces = [
        sketch_parameter(values[low:high], name="w", size=size, start=low * width) for low, high in pairwise(edges)
    ]
    whole = sketch_parameter(values, name="w", size=size)
    torch.testing.assert_close(sum(pieces), whole, rtol=0, atol=2e-4)  # 2,100 float32 terms a bucket at most


def test_linear_and_repeatable():
    a, b = draw(700, 31), draw(700, 31, seed=1)
    combined = sketch_parameter(2 * a - 0.5 * b, name="w")
    apart = 2 * sketch_parameter(a, name="w") - 0.5 * sketch_parameter(b, name="w")
    torch.testing.assert_close(combined, apart, rtol=0, atol=1e-4)
    assert torch.equal(sketch_parameter(a, name="w"), sketch_parameter(a.clone(), name="w"))


@pytest.fixture
def short_chunks(monkeypatch):
    """Runs of 5000 elements at most."""
    monkeypatch.setattr(sketch_grid, "CHUNK", 5000)
    sketch_grid.sign_pools.cache_clear()
    sketch_grid.joined_signs.cache_clear()
    yield
    sketch_grid.sign_pools.cache_clear()
    sketch_grid.joined_signs.cache_clear()


def test_chunk_length_changes_nothing(short_chunks):
    values = draw(500, 700)
    found = sketch_parameter(values, name="w", size=101)
    np.testing.assert_allclose(found, sketch_twin(values.flatten().tolist(), name="w", size=101), rtol=0, atol=1e-3)


@pytest.mark.parametrize("block", [1, 20_000, 1 << 19])
def test_the_length_of_blocks_changes_no_bit(monkeypatch, block):
    named = {"a": draw(700, 900), "b": draw(5, seed=1), "c": draw(300, 1021, seed=2), "d": draw(9000, 1021, seed=3)}
    groups = {"whole": list(named.items()), "one": [("a", named["a"])], "two": [("b", named["b"]), ("c", named["c"])]}
    sketch, norms = Sketcher(groups).sketch_and_norms(groups)
    alone = sketch_parameter(named["d"], name="d")
    monkeypatch.setattr(sketch_on_host, "BLOCK", block)
    others, same = Sketcher(groups).sketch_and_norms(groups)
    assert torch.equal(sketch, others)
    assert torch.equal(norms, same)
    assert torch.equal(alone, sketch_parameter(named["d"], name="d"))


def test_a_plan_holds_for_values_and_not_for_sizes():
    first = {"whole": [("a", draw(300, 700)), ("b", draw(7))], "b": [("b", draw(7))]}
    sketcher = Sketcher(first)
    for shapes, dtype in [((300, 700), None), ((300, 700), torch.bfloat16), ((211, 700), None), ((300, 700), None)]:
        a, b = draw(*shapes, seed=1).to(dtype), draw(7, seed=2)
        groups = {"whole": [("a", a), ("b", b)], "b": [("b", b)]}
        sketch, norms = sketcher.sketch_and_norms(groups)
        fresh, others = Sketcher(groups).sketch_and_norms(groups)
        assert torch.equal(sketch, fresh)
        assert torch.equal(norms, others)
        assert torch.equal(sketch[1], sketch_parameter(b, name="b"))


def test_what_was_infinite_leaves_no_trace():
    values = draw(200, 1021)
    clean = sketch_parameter(values, name="w")
    groups = {"whole": [("w", values)]}
    sketcher = Sketcher(groups)
    sketcher.sketch_and_norms({"whole": [("w", torch.full_like(values, math.nan))]})
    assert torch.equal(sketcher.sketch(groups)[0], clean)
    sketch_parameter(torch.full((700, 1021), math.inf), name="v")
    assert torch.equal(sketch_parameter(values, name="w"), clean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_read_as_float32(dtype):
    values = draw(200, 50).to(dtype)
    assert torch.equal(sketch_parameter(values, name="w"), sketch_parameter(values.float(), name="w"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("planned", [False, True])
def test_the_default_dtype_is_the_loops(monkeypatch, dtype, planned):
    """Chosen before the first record or, `planned`, after it."""
    monkeypatch.setattr(sketch_on_host.Room, "_free", [])
    groups = {"a": [("w", draw(300, 70))]}
    sketcher, before = Sketcher(groups, size=101), torch.get_default_dtype()
    expected = Sketcher(groups, size=101).sketch_and_norms(groups)
    sketch_on_host.Room._free.clear()
    if planned:
        sketcher.sketch_and_norms(groups)
    torch.set_default_dtype(dtype)
    try:
        found, of_slices = sketcher.sketch_and_norms(groups), sketcher.sketch(groups)
    finally:
        torch.set_default_dtype(before)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(of_slices, expected[0])


def test_layout_in_memory_does_not_matter():
    values = draw(60, 40)
    assert torch.equal(sketch_parameter(values.T.contiguous().T, name="w"), sketch_parameter(values, name="w"))


def test_names_give_other_sketches():
    values = draw(50, 40)
    first, second = sketch_parameter(values, name="a"), sketch_parameter(values, name="b")
    assert abs(float(cosine(first, second))) < 5 / math.sqrt(1021)


def test_groups_are_sums_and_shared_parameters_count_in_each():
    named = {name: draw(30, 20, seed=i) for i, name in enumerate("abcd")}
    groups = {
        "whole": list(named.items()),
        "first": [("a", named["a"]), ("b", named["b"])],
        "tied": [("a", named["a"]), ("c", named["c"])],
        "none": [],
    }
    sketcher = Sketcher(groups)
    result = sketcher.sketch(groups)
    assert sketcher.groups == ("whole", "first", "tied", "none")
    each = {name: sketch_parameter(tensor, name=name) for name, tensor in named.items()}
    expected = [sum(each.values()), each["a"] + each["b"], each["a"] + each["c"], torch.zeros(1021)]
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=1e-5)


def test_ranks_add():
    weight, bias = draw(40, 8), draw(8, seed=1)
    groups = {"whole": [("w", weight), ("b", bias)]}
    sketcher = Sketcher(groups, size=101)
    first = sketcher.sketch({"whole": [("w", weight[:13]), ("b", bias[:0])]})
    second = sketcher.sketch({"whole": [("w", weight[13:]), ("b", bias)]}, starts={"w": 13 * 8})
    torch.testing.assert_close(first + second, sketcher.sketch(groups), rtol=0, atol=1e-5)


def test_nan_stays_in_its_group():
    groups = {"sick": [("a", torch.tensor([1.0, float("nan")]))], "well": [("b", torch.ones(5))]}
    sick, well = Sketcher(groups).sketch(groups)
    assert sick.isnan().any()
    assert well.isfinite().all()


def test_the_same_pass_gives_the_groups_norms():
    named = {"a": draw(60, 300), "b": draw(7).bfloat16(), "c": draw(0), "d": draw(4001, 1021, seed=3).T}
    groups = {"whole": list(named.items()), "one": [("a", named["a"])], "rest": list(named.items())[1:], "none": []}
    sketcher = Sketcher(groups)
    sketch, norms = sketcher.sketch_and_norms(groups)
    assert torch.equal(sketch, sketcher.sketch(groups))
    exact = [math.hypot(*(float(t.double().norm()) for _, t in members)) for members in groups.values()]
    np.testing.assert_allclose(norms.numpy(), exact, rtol=3e-7)
    named["a"][3, 4] = math.inf
    assert sketcher.sketch_and_norms(groups)[1].isfinite().tolist() == [False, False, True, True]


def test_the_pass_gives_no_norms_that_would_not_be_exact(monkeypatch):
    tied, wide = draw(5), draw(5).double()
    for held in ([("a", tied), ("b", tied)], [("a", tied), ("b", wide)]):
        groups = {"whole": held}
        assert Sketcher(groups).sketch_and_norms(groups)[1] is None
    monkeypatch.setattr("trainhooks.numerics.sketch.HOSTS", ())
    assert Sketcher({"whole": [("a", tied)]}).sketch_and_norms({"whole": [("a", tied)]})[1] is None


@pytest.fixture
def in_lists(monkeypatch, short_chunks):
    """Sketches are made as on a device, in buffers of few rows."""
    monkeypatch.setattr("trainhooks.numerics.sketch.HOSTS", ())
    monkeypatch.setattr("trainhooks.numerics.segments.ONE_BY_ONE", ())
    monkeypatch.setattr("trainhooks.numerics.sketch_on_device.DEVICE_CHUNKS", 2)


def test_sketches_of_lists_match_the_twin(in_lists):
    shapes = {"a": (60, 300), "b": (7,), "c": (0,), "d": (101, 101), "e": (3,), "f": (1,), "g": (40, 9)}
    named = {name: draw(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    named |= {"b": named["b"].bfloat16(), "d": named["d"].double(), "g": named["g"].T}
    groups = {
        "whole": list(named.items()),
        "one": [(name, named[name]) for name in "gab"],
        "two": [(name, named[name]) for name in "cde"],
        "none": [],
    }
    found = Sketcher(groups, size=101).sketch(groups)
    each = {n: sketch_twin(t.double().flatten().tolist(), name=n, size=101) for n, t in named.items()}
    for group, sketch in zip(groups.values(), found, strict=True):
        expected = sum((each[name] for name, _ in group), np.zeros(101))
        np.testing.assert_allclose(sketch.numpy(), expected, rtol=0, atol=1e-4)
    assert torch.equal(found, Sketcher(groups, size=101).sketch(groups)), "in the same order each time"


def test_nan_in_a_list_stays_in_its_group(in_lists):
    groups = {name: [(name, draw(5, 30, seed=i))] for i, name in enumerate("abc")}
    groups["b"][0][1][2, 3] = math.nan
    groups["c"][0][1][1] = math.inf
    well, nan, inf = Sketcher(groups, size=101).sketch(groups)
    assert well.isfinite().all()
    assert nan.isnan().sum() == 1
    assert (~inf.isfinite()).sum() == 30


def test_random_state_and_gradients_are_left_alone():
    state = torch.get_rng_state()
    parameter = torch.nn.Parameter(draw(50, 50))
    groups = {"whole": [("w", parameter)]}
    assert not Sketcher(groups, size=11).sketch(groups).requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert parameter.grad is None


def test_empty_model():
    assert Sketcher({}).sketch({}).shape == (0, 1021)


@pytest.mark.parametrize(("size", "nearest"), [(1024, 1021), (1000, 997), (1, 2), (0, 2), (-3, 2), (9, 7)])
def test_sizes_must_be_prime(size, nearest):
    with pytest.raises(ValueError, match=f"Pass {nearest}, "):
        Sketcher({"whole": []}, size=size)


def test_bad_arguments():
    with pytest.raises(ValueError, match="starts at element -1"):
        sketch_parameter(draw(3), name="w", start=-1)
    sketcher = Sketcher({"whole": [("w", draw(3))]})
    with pytest.raises(ValueError, match=r"\['v', 'w'\]"):
        sketcher.sketch({"whole": [("v", draw(3))]})
