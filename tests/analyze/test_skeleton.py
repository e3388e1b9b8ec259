"""Names and groups of a checkpoint are those of the live model."""

from pathlib import Path

import pytest
import torch
from loops import TinyLM
from safetensors.torch import save_file

from trainhooks.analyze.skeleton import build_skeleton
from trainhooks.checkpoints.head_key import head_key
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.model import find_output_embedding, parameter_groups


def made(folder: Path, tensors):
    save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    return build_skeleton(checkpoint, head_key(checkpoint))


def names(groups):
    return {group: sorted(name for name, _ in members) for group, members in groups.items()}


@pytest.mark.parametrize("prefix", ["", "model.", "module.model.", "_orig_mod."])
def test_by_names_as_the_live_model(tmp_path, prefix):
    model = TinyLM()
    found = made(tmp_path, {prefix + name: tensor for name, tensor in model.state_dict().items()})
    live = parameter_groups(model, find_output_embedding(model))
    assert names(found.groups()) == names(live)
    assert list(found.groups()) == list(live)
    assert found.head.name == "lm_head.weight"
    assert found.head.norm_name == "norm"
    assert found.keys["lm_head.weight"] == prefix + "lm_head.weight"


def test_a_tied_head_stands_in_both_groups(tmp_path):
    found = made(tmp_path, {"wte.weight": torch.randn(20, 4), "ln_f.weight": torch.ones(4)})
    assert found.head.tied
    groups = names(found.groups())
    assert groups["embedding"] == groups["output_embedding"] == ["wte.weight"]
    found.load_tensors({"wte.weight": torch.full((20, 4), 2.0)})
    assert found.head.tied
    assert float(found.head.weight[0, 0]) == 2


def test_blocks_come_in_their_order_and_buffers_are_left_out(tmp_path):
    tensors = {f"h.{i}.mlp.weight": torch.randn(4, 4) for i in range(12)}
    tensors |= {"h.0.rotary_emb.inv_freq": torch.ones(2), "lm_head.weight": torch.randn(20, 4)}
    tensors["h.0.attention.bias"] = torch.ones(2, 2, dtype=torch.uint8)
    found = made(tmp_path, tensors)
    assert list(found.groups()) == ["whole", *(f"layers.{i}" for i in range(12)), "output_embedding"]
    assert len(found.keys) == 13


def test_what_is_read_replaces_the_meta_tensor(tmp_path):
    found = made(tmp_path, TinyLM().state_dict())
    assert found.head.weight.is_meta
    found.load_tensors({"norm.weight": torch.full((8,), 3.0), "norm.bias": torch.zeros(8)})
    assert found.head.norm_scale is not None
    assert found.head.norm_scale.tolist() == [3.0] * 8
    assert found.head.weight.is_meta
