"""The same numbers from saved checkpoints, in every format, as from the live store of the run that saved them."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from analyzed import same_numbers
from safetensors.torch import load_file

from trainhooks import Recorder, Steps
from trainhooks.analyze import analyze_suite
from trainhooks.store import open_store

transformers = pytest.importorskip("transformers")

STEPS = (0, 1, 2, 4, 8)
LIVE_ONLY = ("skipped", "loss", "learning_rate", "recorder.milliseconds", "convergence.step_per_learning_rate")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny GPT-NeoX trained for 8 steps, recorded live and saved at 5 of them; folder and counts."""
    folder = tmp_path_factory.mktemp("neox")
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    ids = torch.multinomial(1 / torch.arange(1.0, 65), 8 * 64, replacement=True, generator=generator).view(8, 4, 16)
    counts = torch.bincount(ids.flatten(), minlength=64).numpy() + 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    save(model, folder, 0)
    with Recorder(model, store=folder / "live.zarr", counts=counts, schedule=Steps(STEPS)) as recorder:
        for step, batch in enumerate(ids, start=1):
            recorder.begin_step(batch[:, 1:])
            model(input_ids=batch, labels=batch).loss.backward()
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            recorder.after_update()
            if step in STEPS:
                save(model, folder, step)
    return folder, counts


def save(model, folder: Path, step: int) -> None:
    name = f"step{step}"
    model.save_pretrained(folder / "safetensors" / name)
    model.save_pretrained(folder / "sharded" / name, max_shard_size="8KB")
    state = load_file(folder / "safetensors" / name / "model.safetensors")
    config = folder / "safetensors" / name / "config.json"
    for kind in ("bin", "sharded-bin", "dcp"):
        (folder / kind / name).mkdir(parents=True)
        shutil.copy(config, folder / kind / name)
    torch.save(state, folder / "bin" / name / "pytorch_model.bin")
    halves = [dict(list(state.items())[half::2]) for half in range(2)]
    files = [f"pytorch_model-0000{half + 1}-of-00002.bin" for half in range(2)]
    for file, part in zip(files, halves, strict=True):
        torch.save(part, folder / "sharded-bin" / name / file)
    weight_map = {key: file for file, part in zip(files, halves, strict=True) for key in part}
    (folder / "sharded-bin" / name / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.distributed.checkpoint.save(state, checkpoint_id=folder / "dcp" / name)
    (folder / "lightning").mkdir(exist_ok=True)
    saved = {"state_dict": {f"model.{key}": value.clone() for key, value in model.state_dict().items()}, "epoch": 0}
    torch.save({**saved, "global_step": step}, folder / "lightning" / f"epoch=0-step={step}.ckpt")


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin", "sharded-bin", "lightning", "dcp"])
def test_same_numbers_as_live(run, tmp_path, kind):
    folder, counts = run
    report = analyze_suite(
        folder / kind, counts=counts, out=tmp_path / "a.zarr", params="all", workers=1, snapshots=True
    )
    assert report.steps == STEPS
    assert not report.failed
    live, offline = open_store(folder / "live.zarr"), open_store(tmp_path / "a.zarr")
    same_numbers(live, offline, exact=False, leave_out=LIVE_ONLY)
    torch.testing.assert_close(torch.tensor(offline.sketch), torch.tensor(live.sketch), rtol=1e-4, atol=1e-5)
    for step in STEPS:
        assert (live.output_embedding(step) == offline.output_embedding(step)).all()


def test_of_a_store(run, tmp_path):
    folder, counts = run
    analyze_suite(folder / "live.zarr", counts=counts, out=tmp_path / "a.zarr", workers=1)
    live, offline = open_store(folder / "live.zarr"), open_store(tmp_path / "a.zarr")
    for name in ("probe.heldout_spearman", "geometry.row_norm", "geometry.relative_step"):
        torch.testing.assert_close(
            torch.tensor(offline[name]), torch.tensor(live[name]), rtol=2e-5, atol=0, equal_nan=True
        )


def test_a_glob_adds_its_group(run, tmp_path):
    folder, counts = run
    analyze_suite(folder / "bin", counts=counts, out=tmp_path / "a.zarr", params="*.attention.*", workers=1)
    assert open_store(tmp_path / "a.zarr").groups == ("final_norm", "output_embedding", "*.attention.*")
