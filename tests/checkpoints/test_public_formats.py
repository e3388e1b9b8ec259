"""Real tiny suites, each written by its own tool: the steps, the matrix and, across formats, the same numbers."""

from pathlib import Path

import pytest

from trainhooks.checkpoints.head_key import head_key
from trainhooks.checkpoints.suite import list_suite

SUITES = Path(__file__).parents[3] / "shared" / "cases" / "suites"
HEADS = {  # folders whose heads were trained as one, and what each calls it
    "one": {
        "A1_megatron_core_torch_dist": "output_layer.weight",
        "B_nested_olmo_core": "model.lm_head.w_out.weight",
        "B_olmo_unsharded": "transformer.ff_out.weight",
        "B_orbax": "params.params.decoder.logits_dense.kernel",
        "C_gguf": "output.weight",
    },
    "other": {
        "A1_gpt_neox_sequential_flat": "sequential.6.final_linear.weight",
        "B_gpt_neox_layer_files": "sequential.6.final_linear.weight",
        "B_nested_hf_fsdp": "model.lm_head.weight",
        "B_transformer_lens": "unembed.W_U",
    },
    "zero": {"B_deepspeed_zero2": "lm_head.weight", "B_deepspeed_zero3": "lm_head.weight"},
    "llada": {"A1_llada": "model.transformer.ff_out.weight"},
    "olmo": {"A1_native_olmo_untied": "model.transformer.ff_out.weight"},
}
STEPS = (0, 100, 1000, 10000, 100000)


@pytest.mark.skipif(not SUITES.is_dir(), reason=f"the suites are not at {SUITES}")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("group", HEADS)
def test_the_same_head_comes_out_of_every_format(group):
    seen = {}
    for name, key in HEADS[group].items():
        if name == "B_orbax":
            pytest.importorskip("tensorstore", reason="Orbax is read through tensorstore")
        suite = list_suite(SUITES / name)
        assert suite.steps == STEPS, name
        for entry in suite.entries:
            checkpoint = suite.open(entry)
            found = head_key(checkpoint)
            assert (found.key, found.tied) == (key, False), name
            head = checkpoint.read(key).bfloat16().float()  # ZeRO 3 keeps float32 masters, ZeRO 2 the model's bfloat16
            assert head.shape in ((128, 32), (96, 16))
            assert (seen.setdefault(entry.step, head) == head).all(), f"{name} at {entry.step}"
    assert len({tuple(head.flatten().tolist()) for head in seen.values()}) == len(STEPS)
