"""Models from elsewhere: a folder with a GGUF file alone is measured as any other, and again over what is there."""

import numpy as np
import pytest
from recipe_scripts import REPRODUCE, scripts_of

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

WIDTH, ROWS, HIDDEN = 32, 96, 64
SETTINGS = {
    **{"context_length": 256, "block_count": 1, "embedding_length": WIDTH, "feed_forward_length": HIDDEN},
    **{"head_count": 2, "head_count_kv": 2, "layer_norm_rms_eps": 1e-5},
    **{"rope_dimension_count": WIDTH // 2, "vocab_size": ROWS},
}


@pytest.fixture
def models():
    with scripts_of(REPRODUCE) as script:
        yield script("models")


@pytest.fixture
def place(tmp_path):
    """A Llama of one layer with a byte tokenizer, its matrices in blocks of 32 8-bit integers."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "models" / "little"
    folder.mkdir(parents=True)
    writer = gguf.GGUFWriter(str(folder / "little.Q8_0.gguf"), "llama")
    for name, value in SETTINGS.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<|endoftext|>", *(chr(33 + number) for number in range(ROWS - 2)), "!!"])
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (ROWS - 1))
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    wide, tall = (HIDDEN, WIDTH), (WIDTH, HIDDEN)
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH)}
    shapes |= {"attn_output": (WIDTH, WIDTH), "ffn_gate": wide, "ffn_up": wide, "ffn_down": tall}
    matrices = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    for name, shape in {**matrices, "token_embd.weight": (ROWS, WIDTH), "output.weight": (ROWS, WIDTH)}.items():
        matrix = gguf.quantize(rng.normal(0, 0.2, shape).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, matrix, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_a_gguf_file_becomes_a_folder_of_plain_weights(models, place, tmp_path):
    folder = models.whole(place, tmp_path / "out")
    assert folder == tmp_path / "out" / "little.Q8_0"
    head = transformers.AutoModelForCausalLM.from_pretrained(folder).get_output_embeddings().weight
    (stored,) = (one for one in gguf.GGUFReader(place / "little.Q8_0.gguf").tensors if one.name == "output.weight")
    np.testing.assert_array_equal(head.detach().numpy(), gguf.dequantize(stored.data, stored.tensor_type))
    assert models.whole(folder, tmp_path / "other") == folder  # it holds safetensors now


def test_two_models_of_one_name_are_refused_before_work_starts(models, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "real_model", None)
    for folder in ("a", "b"):
        (tmp_path / "models" / folder).mkdir(parents=True)
        (tmp_path / "models" / folder / "model.gguf").touch()
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "model.safetensors").touch()
    with pytest.raises(ValueError, match="have one name"):
        models.real_models(tmp_path / "models", [], tmp_path / "out")


def test_a_model_is_measured_over_what_an_earlier_run_left(models, place, tmp_path):
    out, text = tmp_path / "out", tmp_path / "text"
    text.mkdir()
    for number in range(4):
        letters = (chr(33 + (number + letter) % 90) * (1 + letter % 7) for letter in range(500))
        (text / f"{number}.txt").write_text("".join(letters), encoding="utf-8")
    out.mkdir()
    (out / "little.Q8_0-counts.npz").write_bytes(b"cut short")
    ((name, found),) = models.real_models(place.parent, [text], out).items()
    assert name == "little.Q8_0"
    assert found["rows"] < ROWS  # those with a count
    assert (found["dim"], found["positions"]) == (WIDTH, models.POSITIONS)
    assert found["steering"]["random_norm"] > 0.3
    assert set(found["deletion"]) == {"zero", "compensated"}
