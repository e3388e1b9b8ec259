"""The demo in miniature, in every loop: it ends with a verdict, and what it made can be opened: store and models."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from trainhooks.checkpoints.suite import list_suite
from trainhooks.demo.run import run_demo

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # Lightning's advice on data loading
    "ignore:GPU available",
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own use of torch
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = {}
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for loop in ("plain", "lightning", "transformers"):
        console = Console(file=io.StringIO(), width=120)
        out = tmp_path_factory.mktemp(loop)
        options = {"loop": loop, "device": "cpu", "max_bytes": 400_000, "checkpoints": True}
        store = run_demo(out=out, steps=3, console=console, **options)
        made[loop] = (out, store, console.file.getvalue())
    yield made
    monkeypatch.undo()


def test_the_probe_finds_frequency_where_its_baselines_do_not(tmp_path):
    store = run_demo(out=tmp_path, steps=25, device="cpu", max_bytes=1_500_000, console=Console(file=io.StringIO()))
    spearman = store["probe.heldout_spearman"]
    assert abs(spearman[0]) < 0.1
    assert spearman[-1] > 0.45
    assert abs(store["probe.permuted_heldout_spearman"][-1]) < 0.1
    assert store["loss"][-1] < store["loss"][1] - 1


def test_a_second_run_replaces_the_first(tmp_path):
    for _ in range(2):
        run_demo(out=tmp_path, steps=1, device="cpu", max_bytes=400_000, console=Console(file=io.StringIO()))
    assert len(list((tmp_path / "events").glob("events.out.tfevents.*.trainhooks"))) == 1


def test_a_folder_that_cannot_be_written_is_found_before_the_text_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="no folder"):
        run_demo(out=tmp_path / "file", corpus_paths=[tmp_path / "not there"])


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


@pytest.mark.parametrize("loop", ["plain", "lightning", "transformers"])
def test_the_models_are_those_of_the_store(runs, loop):
    transformers = pytest.importorskip("transformers")
    out, store, _ = runs[loop]
    suite = list_suite(out / "checkpoints")
    assert suite.steps == (0, 1, 2, 3)
    for step, place in [*((entry.step, entry.location) for entry in suite.entries), (3, out / "model")]:
        model = transformers.AutoModelForCausalLM.from_pretrained(place)
        head = model.get_output_embeddings().weight.detach().to(torch.bfloat16).float().numpy()
        assert np.array_equal(head, store.output_embedding(step)), step
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "model")
    assert tokenizer.decode(tokenizer.encode("def main():\n    return 1")) == "def main():\n    return 1"


def test_a_gpu_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU"):
        run_demo(out=tmp_path, device="cuda", max_bytes=400_000)
