import itertools

import numpy as np
import pytest
import torch
from naive_metrics import draw

from trainhooks.numerics.distances import PairSquares, PairSums

HALF, FLOAT, DOUBLE = torch.bfloat16, torch.float32, torch.float64
PAIRS = [(HALF, HALF), (torch.float16, FLOAT), (FLOAT, FLOAT), (DOUBLE, DOUBLE), (DOUBLE, FLOAT)]


def gone_through(values, reference, known=None):
    squares = PairSquares(known)
    blocks = list(PairSums().blocks(values, reference, squares=squares))
    return squares, blocks


@pytest.mark.parametrize("shape", [(7, 1024), (1, 1025), (3, 5), (4099,), (0, 3), (1,)])
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_squares_of_both_and_of_their_difference(dtypes, shape, monkeypatch):
    monkeypatch.setattr("trainhooks.numerics.distances.BLOCK", 2048)
    now, then = (1 + draw(*shape, seed=seed).to(dtype) for seed, dtype in enumerate(dtypes))
    squares, blocks = gone_through(now, then)
    a, b = now.double(), then.double()
    wanted = [float(one.square().sum()) for one in (a, b, a - b)]
    exact = 1e-14 if set(dtypes) == {DOUBLE} else 3e-7
    np.testing.assert_allclose([squares.values, squares.reference, squares.apart], wanted, rtol=exact)
    assert torch.equal(torch.cat([now.new_empty(0), *(block for _, block in blocks)]), now.reshape(-1))
    assert [start for start, _ in blocks] == [0, *itertools.accumulate(len(block) for _, block in blocks)][:-1]
    again, _ = gone_through(now, then, known=1.5)
    assert again.reference == 1.5, "what is known is not measured again"
    assert (again.values, again.apart) == (squares.values, squares.apart)


def test_one_reader_serves_pairs_of_any_type_and_a_state_beside_itself_is_at_distance_0():
    reader, states = PairSums(), [draw(300, 7), draw(11).half(), draw(5).double(), draw(400, 5, seed=3)]
    for state in states:
        squares = PairSquares()
        assert sum(len(block) for _, block in reader.blocks(state, state, squares=squares)) == state.numel()
        assert squares.apart == 0
        assert squares.values == squares.reference > 0


def test_what_is_not_finite_is_said():
    sick = draw(50, 3)
    sick[4, 1] = float("nan")
    squares, _ = gone_through(sick, draw(50, 3))
    assert np.isnan([squares.values, squares.apart]).all()
    assert np.isfinite(squares.reference)
