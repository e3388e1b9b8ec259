"""What is read out of one name."""

import pytest

from trainhooks.checkpoints.names import parse_name
from trainhooks.checkpoints.patterns import compiled, matched

B = 10**9
READ = {
    "step1000": {"step": 1000},
    "step-125000": {"step": 125_000},
    "Step_5": {"step": 5},
    "global_step1000": {"step": 1000},
    "global-step-12": {"step": 12},
    "checkpoint-500": {"step": 500},
    "checkpoint_0001000": {"step": 1000},
    "checkpoint-1000step": {"step": 1000},
    "5000_steps": {"step": 5000},
    "iter_0001000": {"step": 1000},
    "iter-000500-ckpt.pth": {"step": 500},
    "ckpt_007": {"step": 7},
    "100": {"step": 100},
    "model_001000.pt": {"step": 1000},
    "state_step001000.pt": {"step": 1000},
    "rwkv-100.pth": {"step": 100},
    "epoch_3": {"step": 3},
    "ep3-ba1000": {"step": 1000},
    "ep0-ba1000-rank0.pt": {"step": 1000},
    "epoch=0-step=7-val_loss=0.5.ckpt": {"step": 7},
    "epoch=0-step=7-v2.ckpt": {"step": 7, "version": 2},
    "megatron_gpt--val_loss=2.3-step=1000-consumed_samples=256000.0-last": {"step": 1000},
    "step1000-unsharded": {"step": 1000},
    "step1000-tokens4B": {"step": 1000, "tokens": 4 * B},
    "step2627139-tokens15T": {"step": 2_627_139, "tokens": 15_000 * B},
    "step-240k-token-503B": {"step": 240_000, "tokens": 503 * B},
    "step-001000-2BT": {"step": 1000, "tokens": 2 * B},
    "step1.5k": {"step": 1500},
    "checkpoint-90k": {"step": 90_000},
    "TinyLlama-1.1B-intermediate-step-240k-503b": {"step": 240_000, "tokens": 503 * B},
    "TinyLlama-1.1B-intermediate-step-955k-token-2T": {"step": 955_000, "tokens": 2000 * B},
    "TinyLlama-1.1B-intermediate-step-715k-1.5T": {"step": 715_000, "tokens": 1500 * B},
    "OLMo-7B-step1000": {"step": 1000},
    "multiberts-seed_0-step_20k": {"step": 20_000, "seed": "0"},
    "step1250-seed-default": {"step": 1250, "seed": "default"},
    "step1250-seed-large-aux-2": {"step": 1250, "seed": "large-aux-2"},
    "seed3-step5": {"step": 5, "seed": "3"},
    "stage1-step1000-tokens5B": {"step": 1000, "tokens": 5 * B, "stage": "stage1"},
    "stage2-ingredient3-step1000-tokens5B": {"step": 1000, "tokens": 5 * B, "stage": "stage2-ingredient3"},
    "stage_3_step_7": {"step": 7, "stage": "stage3"},
    "CrystalCoder_phase2_checkpoint_000100": {"step": 100, "stage": "phase2"},
    "lc-4k-to-32k-step-20000": {"step": 20_000, "stage": "lc-4k-to-32k"},
    "extension_step0000250": {"step": 250, "stage": "extension"},
    "longctx-step1000": {"step": 1000, "stage": "longctx"},
    "ext1000": {"step": 1000, "stage": "ext"},
    "decay500": {"step": 500, "stage": "decay"},
    "10B": {"tokens": 10 * B},
    "0.5T": {"tokens": 500 * B},
    "train_00220B": {"tokens": 220 * B},
    "240b_tokens": {"tokens": 240 * B},
    "tokens_10B": {"tokens": 10 * B},
    "chck_10M": {"tokens": 10**7},
    "Ling-mini-base-2.0-5T": {"tokens": 5000 * B},
    "chunk_12": {"chunk": 12},
    "Saving HF Model -- Step 1000": {"step": 1000},
}
NOT_READ = (
    "main", "last", "final", "fp32", "v2", "v1.0", "version_0", "run_1", "pythia-70m", "llama-7b", "it-SFT",
    "model-00001-of-00002.safetensors", "mp_rank_00_model_states.pt", "layer_00-model_00-model_states.pt",
    "shard-00000", "consolidated.00.pth", "pytorch_model_fsdp_0", "refs/pr/1", "2024-03-01",
    "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "step1e6", "checkpoint-2E5", "2.5e9-tokens", "step12,000", "checkpoint-12,000",
    "checkpoint_3_15000.pt", "ckpt-20240115-000500", "epoch_3_1500",
    "step99999999999999999999", "step" + "9" * 5000, "a" * 5000, "", "step", "١٢", "step-1.5",
)  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_a_name_says(name):
    parsed = parse_name(name)
    assert parsed is not None
    found = {key: getattr(parsed, key) for key in ("step", "tokens", "stage", "seed", "chunk", "version")}
    assert {
        key: value for key, value in found.items() if value not in (None, "") and (key, value) != ("version", 0)
    } == (READ[name])


@pytest.mark.parametrize("name", NOT_READ)
def test_names_that_tell_no_step(name):
    assert parse_name(name) is None


def test_a_step_of_zero_is_one():
    assert parse_name("step0").step == 0
    assert parse_name("multiberts-seed_0-step_0k").step == 0


def test_expressions_take_units_stage_and_seed():
    by_unit = compiled(r"step\d+-tokens(?P<tokens>\d+[BT])")
    assert matched(by_unit, "step5-tokens15T").tokens == 15_000 * B
    whole = compiled(r"(?P<stage>\w+)-(?P<step>\d+k?)-(?P<seed>\w+)")
    parsed = matched(whole, "late-20k-b")
    assert (parsed.stage, parsed.step, parsed.seed) == ("late", 20_000, "b")
    assert matched(whole, "main") is None
