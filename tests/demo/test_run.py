"""The demo in miniature, in every loop: it ends with a verdict, and what it made can be opened."""

import io

import numpy as np
import pytest
from rich.console import Console

from trainhooks.demo.run import run_demo

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # Lightning's advice on data loading
    "ignore:GPU available",
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own use of torch
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = {}
    for loop in ("plain", "lightning", "transformers"):
        console = Console(file=io.StringIO(), width=120)
        out = tmp_path_factory.mktemp(loop)
        store = run_demo(out=out, steps=3, loop=loop, device="cpu", max_bytes=400_000, console=console)
        made[loop] = (out, store, console.file.getvalue())
    return made


@pytest.mark.parametrize("loop", ["plain", "lightning", "transformers"])
def test_it_says_what_happened_and_where(runs, loop):
    out, store, text = runs[loop]
    assert store.steps.tolist() == [0, 1, 2, 3]
    assert store.complete
    for said in ("loss", "frequency probe, held out", "row norm alone", "permuted null", "lead", "ms a step"):
        assert said in text
    assert str(out / "run.zarr") in text.replace("\n", "")
    assert list((out / "events").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("loop", ["lightning", "transformers"])
def test_every_loop_makes_the_same_trajectory(runs, loop):
    plain, other = runs["plain"][1], runs[loop][1]
    for step in range(4):
        assert np.array_equal(plain.output_embedding(step), other.output_embedding(step))
    for name in plain.names:
        if not name.startswith("recorder."):
            np.testing.assert_array_equal(plain[name], other[name], err_msg=name)


def test_a_gpu_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no GPU"):
        run_demo(out=tmp_path, device="cuda", max_bytes=400_000)
