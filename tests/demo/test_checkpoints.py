"""The demo's models on disk: the last one belongs to the store's last step, the suite to its records."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from trainhooks.checkpoints.suite import list_suite
from trainhooks.core.schedule import Steps
from trainhooks.demo.checkpoints import CheckpointSuite, clear_models, save_model
from trainhooks.demo.run import run_demo

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # Lightning's advice on data loading
    "ignore:GPU available",
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # Lightning's own use of torch
)


@pytest.mark.parametrize("loop", ["plain", "lightning", "transformers"])
def test_the_models_are_those_of_the_store(tmp_path, loop, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {"loop": loop, "device": "cpu", "max_bytes": 200_000, "checkpoints": True}
    store = run_demo(out=tmp_path, steps=3, console=Console(file=io.StringIO()), **options)
    suite = list_suite(tmp_path / "checkpoints")
    assert suite.steps == (0, 1, 2, 3)
    for step, place in [*((entry.step, entry.location) for entry in suite.entries), (3, tmp_path / "model")]:
        model = transformers.AutoModelForCausalLM.from_pretrained(place)
        head = model.get_output_embeddings().weight.detach().to(torch.bfloat16).float().numpy()
        assert np.array_equal(head, store.output_embedding(step)), step
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.decode(tokenizer.encode("def main():\n    return 1")) == "def main():\n    return 1"


def test_a_suite_has_the_schedules_steps_and_the_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("trainhooks.demo.checkpoints.save_model", lambda folder, **_: written.append(folder.name))
    suite = CheckpointSuite(tmp_path, torch.nn.Linear(1, 1), None, last=5, schedule=Steps([0, 2]))
    for step in range(6):
        suite(step)
    assert written == ["step0", "step2", "step5"]


def test_another_runs_models_go_and_what_is_not_the_demos_stays(tmp_path):
    for name in ("checkpoints/step8", "checkpoints/best", "model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    clear_models(tmp_path)
    clear_models(tmp_path / "nothing")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["best"]
    assert not (tmp_path / "model").exists()


def test_saving_leaves_progress_bars_as_they_were(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models
    from transformers.utils import logging

    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    before = logging.is_progress_bar_enabled()
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a"))
    save_model(tmp_path, model=transformers.LlamaForCausalLM(config), tokenizer=tokenizer)
    assert logging.is_progress_bar_enabled() == before
    assert (tmp_path / "tokenizer.json").is_file()
