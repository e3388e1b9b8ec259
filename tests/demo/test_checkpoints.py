"""The demo's models on disk, without the demo around them."""

import pytest
import torch

from trainhooks.core.schedule import Steps
from trainhooks.demo.checkpoints import CheckpointSuite, clear_models, save_model


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
