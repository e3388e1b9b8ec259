"""Other projects' formats: the right head of each, tied and untied, whole or refused."""

import json
import shutil

import pytest
import torch
from foreign_formats import HEAD, INNER, INPUT, NEEDS_TENSORSTORE, WRITERS, gguf_bytes, q8_blocks, save, zarr_array
from safetensors.torch import save_file

from trainhooks.checkpoints.audit.audit import audit_suite
from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.registry import FORMATS, located
from trainhooks.checkpoints.head_key import head_key
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.checkpoints.sources.local_folder import LocalFolder
from trainhooks.checkpoints.suite import list_suite

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore::FutureWarning")


def write(form, folder, **options):
    if form in NEEDS_TENSORSTORE:
        pytest.importorskip("tensorstore", reason="JAX's checkpoints are read through tensorstore")
    WRITERS[form](folder, **options)
    return folder


def read_head(folder):
    checkpoint = open_checkpoint(folder)
    return checkpoint.read(head_key(checkpoint).key)


@pytest.mark.parametrize("form", WRITERS)
def test_the_untied_head_is_read(tmp_path, form):
    checkpoint = open_checkpoint(write(form, tmp_path / "step1"))
    found = head_key(checkpoint)
    assert not found.tied
    assert checkpoint.tensors[found.key].shape == tuple(HEAD.shape)
    assert torch.equal(checkpoint.read(found.key), HEAD)
    assert checkpoint.identity(found.key) == checkpoint.identity(found.key)


@pytest.mark.parametrize("form", [form for form in WRITERS if form != "TransformerLens"])
def test_the_tied_head_is_the_input_embedding(tmp_path, form):
    checkpoint = open_checkpoint(write(form, tmp_path / "step1", tied=True))
    found = head_key(checkpoint)
    assert found.tied
    assert torch.equal(checkpoint.read(found.key), INPUT)


def test_each_format_is_known_by_a_name_of_its_own(tmp_path):
    found = set()
    for form in WRITERS:
        if form not in NEEDS_TENSORSTORE:
            WRITERS[form](tmp_path / form)
            found.add(located(LocalFolder.list(tmp_path / form))[0].name)
    assert {"GPT-NeoX layer files", "DeepSpeed ZeRO 3", "DeepSpeed universal", "nanotron", "GGUF"} <= found
    assert len({form.name for form in FORMATS}) == len(FORMATS)


LOST = {  # what is taken away, and what is said
    "Megatron-LM": ("mp_rank_01", "tensor ranks .0. of 2"),
    "Megatron-LM stages": ("mp_rank_01_001", "tensor ranks .0. of 2"),
    "GPT-NeoX layers": ("layer_05-model_01-model_states.pt", "1 of 2 files of layer 5"),
    "DeepSpeed": ("mp_rank_01_model_states.pt", "a rank's file is missing"),
    "ZeRO 3": ("bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "1 of 2 data ranks"),
    "Meta": ("consolidated.00.pth", "a rank's file is missing"),
    "nanotron": ("model/model/lm_head/pp_block/model_weight_pp-rank-0-of-1_tp-rank-1-of-2.safetensors", "hold 992"),
    "Levanter": ("model/lm_head/weight/1.0", "1 of 2 chunks"),
    "OLMo-core": ("checkpoint/model_and_optim/__0_0.distcp", "has no file"),
}


@pytest.mark.parametrize("form", LOST)
def test_a_part_that_is_missing_is_an_error_and_no_smaller_head(tmp_path, form):
    folder = write(form, tmp_path / "step1")
    lost = folder / LOST[form][0]
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    with pytest.raises(CheckpointError, match=LOST[form][1]):
        read_head(folder)


def test_without_the_last_layers_file_nothing_is_taken_for_tied(tmp_path):
    folder = write("GPT-NeoX layers", tmp_path / "step1")
    for rank in range(2):
        (folder / f"layer_05-model_{rank:02d}-model_states.pt").unlink()
    with pytest.raises(CheckpointError, match="configuration says that it is not the input embedding"):
        head_key(open_checkpoint(folder))
    shutil.rmtree(folder / "configs")
    with pytest.raises(CheckpointError, match="nothing here says: the model lies in a file a layer"):
        head_key(open_checkpoint(folder))


@pytest.mark.parametrize("form", ["Megatron-LM", "Megatron-core", "DeepSpeed", "GPT-NeoX layers", "nanotron"])
def test_padding_rows_and_joined_ranks_are_said(tmp_path, form):
    told = head_key(open_checkpoint(write(form, tmp_path / "step1"))).told
    assert "rows 60 to 61 are padding" in told
    assert form == "Megatron-core" or "2 ranks" in told


def test_the_parts_of_blocks_are_joined_or_refused(tmp_path):
    folder = write("Megatron-LM", tmp_path / "step1")
    checkpoint = open_checkpoint(folder)
    inside = "language_model.encoder.layers.0.mlp.dense_h_to_4h.weight"
    assert torch.equal(checkpoint.read(inside), HEAD)
    assert torch.equal(checkpoint.read("language_model.encoder.final_norm.weight"), torch.ones(32))
    for rank in range(2):
        model = {"output_layer.weight": HEAD.chunk(2)[rank], "strange.weight": INNER, "x.linear_fc2.weight": INNER}
        told = {"model": model, "args": {"tensor_model_parallel_size": 2}}
        save(tmp_path / "other" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt", told)
    other = open_checkpoint(tmp_path / "other")
    assert torch.equal(other.read("x.linear_fc2.weight"), torch.cat([INNER, INNER], dim=1))
    with pytest.raises(CheckpointError, match="how they are joined is not known"):
        other.read("strange.weight")


def four_ranks(folder, *, dense, told=None, found=2):
    """The first of four ranks of Megatron-LM, whose arguments nobody saved."""
    for rank in range(found):
        model = {"embedding": {"word_embeddings": {"weight": INPUT[rank * 15 : rank * 15 + 15].clone()}}}
        if dense is not None:
            model["transformer"] = {"layers.0.attention.dense.weight": torch.ones(*dense)}
        saved = {"model": {"language_model": model}, **({} if told is None else {"args": told})}
        save(folder / f"mp_rank_{rank:02d}" / "model_optim_rng.pt", saved)
    return folder


@pytest.mark.parametrize("found", [1, 2])
def test_ranks_that_are_missing_at_the_end_are_no_smaller_vocabulary(tmp_path, found):
    with pytest.raises(CheckpointError, match=f"{found} tensor ranks of 4: fetch the others"):
        open_checkpoint(four_ranks(tmp_path / "dense", dense=(32, 8), found=found))
    with pytest.raises(CheckpointError, match=f"{found} tensor ranks hold {15 * found} rows for 60 ids"):
        open_checkpoint(four_ranks(tmp_path / "ids", dense=None, told={"vocab_size": 60}, found=found))
    whole = open_checkpoint(four_ranks(tmp_path / "whole", dense=(32, 32 // found), found=found))
    entry = whole.tensors["language_model.embedding.word_embeddings.weight"]
    assert entry.shape == (15 * found, 32)
    assert ("known by the attention's shape alone" in entry.note) == (found > 1)


def test_several_ranks_of_which_nothing_says_that_they_are_all(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing in them says whether these are all: .*give the joined"):
        open_checkpoint(four_ranks(tmp_path, dense=None))


def test_copies_on_every_rank_are_joined_by_no_guess(tmp_path):
    for rank in range(2):
        save(tmp_path / f"mp_rank_{rank:02d}_model_states.pt", {"module": {"lm_head.weight": HEAD}})
    with pytest.raises(CheckpointError, match=r"copies of the whole, or pieces\? Nothing here says it"):
        open_checkpoint(tmp_path)
    for rank in range(2):
        saved = {"module": {"lm_head.weight": HEAD}, "args": {"padded_vocab_size": 62}}
        save(tmp_path / f"mp_rank_{rank:02d}_model_states.pt", saved)
    assert torch.equal(open_checkpoint(tmp_path).read("lm_head.weight"), HEAD)


def test_rows_that_the_settings_do_not_announce_are_an_error(tmp_path):
    save(
        tmp_path / "mp_rank_00_model_states.pt",
        {"module": {"lm_head.weight": HEAD}, "args": {"padded_vocab_size": 124}},
    )
    with pytest.raises(CheckpointError, match=r"hold 62 rows of 'lm_head\.weight'; its settings announce 124"):
        open_checkpoint(tmp_path)


def test_names_that_are_shared_are_aliases(tmp_path):
    found = head_key(open_checkpoint(write("ZeRO 3", tmp_path, tied=True)))
    assert found.tied
    assert "is embed_tokens.weight too" in found.told


def test_every_tensor_of_zero_3_is_put_together(tmp_path):
    checkpoint = open_checkpoint(write("ZeRO 3", tmp_path))
    for key, tensor in {"embed_tokens.weight": INPUT, "mid.weight": INNER, "lm_head.weight": HEAD}.items():
        assert torch.equal(checkpoint.read(key), tensor)


def test_quantised_gguf_is_dequantised_and_says_so(tmp_path):
    pytest.importorskip("gguf", reason="quantised GGUF is read through the gguf package")
    data, values = q8_blocks(HEAD)
    (tmp_path / "step1.gguf").write_bytes(gguf_bytes({"output.weight": (tuple(HEAD.shape), 8, data)}))
    checkpoint = open_checkpoint(tmp_path / "step1.gguf")
    found = head_key(checkpoint)
    assert "dequantised from Q8_0" in found.told
    assert torch.allclose(checkpoint.read(found.key), values, rtol=0, atol=1e-6)


def test_quantised_gguf_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    data, _ = q8_blocks(HEAD)
    (tmp_path / "step1.gguf").write_bytes(gguf_bytes({"output.weight": (tuple(HEAD.shape), 8, data)}))
    with pytest.raises(
        CheckpointError, match=r"quantised \(GGUF type 8\); to dequantise it: pip install 'trainhooks\[gguf"
    ):
        head_key(open_checkpoint(tmp_path / "step1.gguf"))


def test_gguf_in_several_files(tmp_path):
    for number, (key, tensor) in enumerate({"token_embd.weight": INPUT, "output.weight": HEAD}.items(), start=1):
        held = {key: (tuple(tensor.shape), 0, tensor.numpy().tobytes())}
        (tmp_path / f"m-{number:05d}-of-00002.gguf").write_bytes(gguf_bytes(held))
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.read(head_key(checkpoint).key), HEAD)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="1 of 00002 files"):
        open_checkpoint(tmp_path)


def test_a_matrix_that_the_user_says_is_transposed(tmp_path):
    save_file({"wte.weight": INPUT, "out.matrix": HEAD.T.contiguous()}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path, transposed="out.matrix")
    found = head_key(checkpoint, key="out.matrix")
    assert torch.equal(checkpoint.read(found.key), HEAD)
    assert "read transposed" in found.told
    with pytest.raises(CheckpointError, match="no matrix 'nothing'"):
        open_checkpoint(tmp_path, transposed="nothing")


def test_what_its_name_turns_is_not_turned_twice(tmp_path):
    folder = write("TransformerLens", tmp_path)
    checkpoint = open_checkpoint(folder, transposed="unembed.W_U")
    assert torch.equal(checkpoint.read("unembed.W_U"), HEAD)
    assert head_key(checkpoint).bias_key == "unembed.b_U"


def test_a_flax_head_that_was_named_by_the_framework_is_not_passed_over(tmp_path):
    save_file({"Embed_0.embedding": INPUT, "Dense_0.kernel": HEAD.T.contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no tensor has a name known"):
        head_key(open_checkpoint(tmp_path))


def test_a_link_out_of_a_jax_checkpoint_is_not_followed(tmp_path):
    folder = write("Levanter", tmp_path / "step1")
    zarr_array(tmp_path / "elsewhere", HEAD)
    chunk = folder / "model" / "lm_head" / "weight" / "0.0"
    chunk.unlink()
    chunk.symlink_to(tmp_path / "elsewhere" / "0.0")
    with pytest.raises(CheckpointError, match="link out of the checkpoint"):
        open_checkpoint(folder)


def test_a_zarr_store_with_a_group_at_its_root_is_no_checkpoint(tmp_path):
    zarr_array(tmp_path / "head", HEAD)
    (tmp_path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(tmp_path)


def test_an_embedding_split_by_columns_beside_a_head_split_by_rows(tmp_path):
    for rank in range(2):
        embedding, head = INPUT.chunk(2, dim=1)[rank].clone(), HEAD.chunk(2)[rank].clone()
        tensors = {"tok_embeddings.weight": embedding, "output.weight": head}
        save(tmp_path / f"consolidated.{rank:02d}.pth", tensors)
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.read("tok_embeddings.weight"), INPUT)
    assert torch.equal(checkpoint.read(head_key(checkpoint).key), HEAD)


def test_a_suite_with_a_matrix_that_the_user_says_is_transposed(tmp_path):
    for step in (1, 2):
        (tmp_path / f"step{step}").mkdir()
        tensors = {"wte.weight": INPUT, "out.matrix": (HEAD.T + step).contiguous()}
        save_file(tensors, tmp_path / f"step{step}" / "model.safetensors")
    suite = list_suite(tmp_path).with_transposed("out.matrix")
    assert [suite.open(entry).tensors["out.matrix"].shape for entry in suite.entries] == [(62, 32)] * 2
    report = audit_suite(suite, head="out.matrix")
    assert report.clean
    assert "read transposed" in report.taken[0]
    with pytest.raises(ValueError, match="transposed needs the key"):
        suite.with_transposed(None)


@pytest.mark.parametrize("name", ["m-00001-of-00002.gguf", "m-00001-of-00002.safetensors"])
def test_one_file_of_several_does_not_say_that_the_head_is_the_input_embedding(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".gguf"):
        path.write_bytes(gguf_bytes({"token_embd.weight": (tuple(INPUT.shape), 0, INPUT.numpy().tobytes())}))
    else:
        save_file({"model.embed_tokens.weight": INPUT}, path)
    with pytest.raises(CheckpointError, match="one file of several"):
        head_key(open_checkpoint(path))


def test_the_first_of_metas_files_alone_is_no_whole_model(tmp_path):
    half = {"tok_embeddings.weight": torch.ones(32, 4), "output.weight": torch.ones(16, 8)}
    save(tmp_path / "consolidated.00.pth", half)
    with pytest.raises(CheckpointError, match=r"16 rows, the embedding 32: a rank's file is missing"):
        open_checkpoint(tmp_path)


def test_one_of_two_tensor_ranks_of_layer_files_is_no_whole_model(tmp_path):
    save(tmp_path / "layer_00-model_00-model_states.pt", {"word_embeddings.weight": torch.zeros(16, 8)})
    save(tmp_path / "layer_05-model_00-model_states.pt", {"final_linear.weight": torch.ones(16, 8)})
    save(tmp_path / "mp_rank_00_model_states.pt", {"mp_world_size": 2})
    with pytest.raises(CheckpointError, match="1 of 2 tensor ranks"):
        open_checkpoint(tmp_path)
