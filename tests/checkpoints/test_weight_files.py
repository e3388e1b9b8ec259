"""Steps whose weights lie one folder down, or beside states that only resuming needs."""

import os

import pytest
import torch
import torch.distributed.checkpoint as dcp

from trainhooks.checkpoints.audit.audit import audit_suite
from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.head_key import head_key
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.checkpoints.suite import list_suite

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

GENERATOR = torch.Generator().manual_seed(0)
HEAD, INPUT = (torch.randn(50, 16, generator=GENERATOR) for _ in range(2))
STATE = {"lm_head.weight": HEAD, "model.embed_tokens.weight": INPUT}
MOMENTS = {"state": {0: {"exp_avg": torch.zeros(50, 16)}}, "param_groups": []}


def save_dcp(folder, tensors):
    dcp.save(dict(tensors), checkpoint_id=folder, no_dist=True)


def olmo_core(step):
    moments = {"optim.state.lm_head.w_out.weight.exp_avg": torch.zeros(50, 16)}
    tensors = {"model.lm_head.w_out.weight": HEAD, "model.embeddings.weight": INPUT}
    save_dcp(step / "model_and_optim", tensors | moments)
    (step / ".metadata.json").write_text("{}")
    save_files(step / "train", {"rank0.pt": {"global_step": 1}})


def sharded_state(step):
    save_dcp(step / "pytorch_model_fsdp_0", STATE)
    save_dcp(step / "optimizer_0", {"state.lm_head.weight.exp_avg": torch.zeros(50, 16)})
    save_files(step, {"scheduler.pt": {"last_epoch": 1}, "rng_state_0.pth": {"cpu": torch.zeros(2)}})


def save_files(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        torch.save(content, folder / file)


def megatron(step):
    model = {"language_model": {"output_layer.weight": HEAD, "embedding": {"word_embeddings": {"weight": INPUT}}}}
    save_files(step / "mp_rank_00", {"model_optim_rng.pt": {"model": model}, "distrib_optim.pt": MOMENTS})


LAYOUTS = {
    "OLMo-core": olmo_core,
    "Trainer with FSDP": sharded_state,
    "Megatron": megatron,
    "accelerate": lambda step: save_files(
        step, {"pytorch_model_fsdp.bin": STATE, "optimizer.bin": MOMENTS, "scheduler.bin": {"last_epoch": 1}}
    ),
    "DeepSpeed": lambda step: save_files(
        step,
        {
            "mp_rank_00_model_states.pt": {"module": STATE},
            "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": MOMENTS,
            "zero_pp_rank_1_mp_rank_00_optim_states.pt": MOMENTS,
        },
    ),
    "unsharded OLMo": lambda step: save_files(step, {"model.pt": STATE, "optim.pt": MOMENTS, "train.pt": {"step": 1}}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_are_found(tmp_path, layout):
    LAYOUTS[layout](tmp_path / "step1")
    checkpoint = open_checkpoint(tmp_path / "step1")
    assert torch.equal(checkpoint.read(head_key(checkpoint).key), HEAD)
    assert audit_suite(list_suite(tmp_path)).clean


def test_parts_of_several_ranks_are_not_taken_for_the_whole(tmp_path):
    for rank in range(2):
        save_files(tmp_path / f"mp_rank_0{rank}", {"model_optim_rng.pt": {"model": STATE}})
    with pytest.raises(CheckpointError, match="copies of the whole, or pieces"):
        open_checkpoint(tmp_path)


def test_several_models_below_are_refused(tmp_path):
    for number in range(2):
        save_dcp(tmp_path / f"pytorch_model_fsdp_{number}", STATE)
    with pytest.raises(CheckpointError, match="pytorch_model_fsdp_0, pytorch_model_fsdp_1 below it do"):
        open_checkpoint(tmp_path)


def test_two_files_of_weights_are_still_refused(tmp_path):
    save_files(tmp_path, {"model.pt": STATE, "ema.pt": STATE, "optim.pt": MOMENTS})
    with pytest.raises(CheckpointError, match=r"holds ema\.pt, model\.pt and no index"):
        open_checkpoint(tmp_path)


def test_weights_in_the_folder_itself_come_first(tmp_path):
    save_files(tmp_path, {"pytorch_model.bin": STATE})
    save_dcp(tmp_path / "model_and_optim", {"lm_head.weight": INPUT})
    assert torch.equal(open_checkpoint(tmp_path).read("lm_head.weight"), HEAD)


def test_a_link_to_another_folder_is_not_followed(tmp_path):
    save_dcp(tmp_path / "outside" / "model_and_optim", STATE)
    step = tmp_path / "suite" / "step1"
    step.mkdir(parents=True)
    os.symlink(tmp_path / "outside" / "model_and_optim", step / "model_and_optim")
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(step)
    assert [finding.kind for finding in audit_suite(list_suite(tmp_path / "suite")).findings] == ["no weights"]
