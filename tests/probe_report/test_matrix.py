import json
import math
import os
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import trainhooks.cli.probe  # noqa: F401 - registers the command
from trainhooks.checkpoints.head_key import head_key
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.cli import app
from trainhooks.core.variable import Variable
from trainhooks.probe_report import open_matrix, read_token_texts, report_matrix, report_source
from trainhooks.probe_report.render import number, place, spread
from trainhooks.store import Layout, StoreWriter

VOCAB, DIM, FOLDS = 600, 12, 5
DATA = Path(os.environ.get("TRAINHOOKS_DATA", Path(__file__).parents[3] / "shared" / "data"))


def planted(seed=0, *, noise=0.3, vocab=VOCAB, dim=DIM):
    """A matrix whose slope for -log(c/N) is known, and counts; the last ten ids are never counted."""
    rng = np.random.default_rng(seed)
    counts = np.maximum(1, (1e6 / np.arange(1, vocab + 1) ** 1.1)).astype(np.int64)
    rng.shuffle(counts)
    counts[-10:] = 0
    y = -np.log(np.maximum(counts, 1) / counts.sum())
    slope = rng.normal(size=dim)
    matrix = rng.normal(size=(vocab, dim))
    matrix += np.outer(y - y.mean() + noise * rng.normal(size=vocab) - (matrix - matrix.mean(0)) @ slope, slope) / (
        slope @ slope
    )
    return torch.from_numpy(matrix), counts


def naive(x, y, ids):
    """Held-out R^2 and the same for each fold, by explicit refits in float64."""
    error = spread_ = 0.0
    each = []
    for fold in range(FOLDS):
        held, kept = ids[ids % FOLDS == fold], ids[ids % FOLDS != fold]
        design = np.column_stack([np.ones(len(kept)), x[kept]])
        found = np.linalg.lstsq(design, y[kept], rcond=None)[0]
        sse = np.sum((y[held] - found[0] - x[held] @ found[1:]) ** 2)
        sst = np.sum((y[held] - y[kept].mean()) ** 2)
        error, spread_ = error + sse, spread_ + sst
        each.append(1 - sse / sst)
    return 1 - error / spread_, each


@pytest.fixture(scope="module")
def matrix():
    return planted()


@pytest.fixture(scope="module")
def texts():
    return [(" " if i % 3 else "") + "x" * (1 + i % 7) for i in range(VOCAB)]


@pytest.fixture(scope="module")
def report(matrix, texts):
    embedding, counts = matrix
    return report_matrix(embedding, counts=counts, token_texts=texts, draws=4)


@pytest.fixture(scope="module")
def store(tmp_path_factory, matrix):
    path = tmp_path_factory.mktemp("report") / "run.zarr"
    embedding, counts = matrix
    layout = Layout(
        vocab=VOCAB,
        dim=DIM,
        groups=(),
        sketch_size=0,
        variables=(Variable("channel.mean_hidden", description="of E.mu"), Variable("loss")),
        token_count=counts,
        attributes={"min_count": 2, "excluded_tokens": [3]},
    )
    moved = embedding.float().numpy()
    with closing(StoreWriter(path, layout)) as writer:
        for step in (0, 4, 8):
            turned = planted(seed=1)[0].float().numpy() if step == 0 else moved + 0.01 * step
            writer.append(step, {"channel.mean_hidden": 0.1 * step, "loss": 1.0}, snapshot=turned)
    return path


def test_figures_are_those_of_explicit_refits(matrix, report):
    x, counts = matrix[0].numpy(), matrix[1]
    ids = np.flatnonzero(counts)
    y = -np.log(np.maximum(counts, 1) / counts.sum())
    r2, each = naive(x, y, ids)
    assert report.probe.heldout_r2 == pytest.approx(r2, abs=1e-9)
    assert [fold.heldout_r2 for fold in report.folds] == pytest.approx(each, abs=1e-9)
    assert sum(fold.rows for fold in report.folds) == report.rows == VOCAB - 10
    norms = np.linalg.norm(x - x[ids].mean(0), axis=1)[:, None]
    assert report.row_norm.heldout_r2 == pytest.approx(naive(norms, y, ids)[0], abs=1e-9)
    assert report.variance == pytest.approx(y[ids].var())
    assert report.mean == pytest.approx(y[ids].mean())
    assert report.null_r2 == pytest.approx(DIM / (len(ids) - 1))
    folds = [fold.heldout_spearman for fold in report.folds]
    assert report.probe.heldout_spearman == pytest.approx(np.mean(folds), abs=1e-12)


def test_a_planted_code_stands_out_and_its_permutation_does_not(report):
    assert report.probe.heldout_r2 > 0.9
    assert report.permuted.heldout_r2 < 0.01
    assert abs(report.permuted.heldout_spearman) < 0.15
    assert max(one.heldout_r2 for one in report.random_directions) < report.probe.heldout_r2
    assert report.covariates.heldout_r2 < 0.05
    assert report.covariate_gain == pytest.approx(report.joint.heldout_r2 - report.covariates.heldout_r2)


def test_smoothed_variant_takes_unseen_rows_too(matrix, report):
    x, counts = matrix[0].numpy(), matrix[1]
    y = -np.log((counts + 0.5) / (counts.sum() + VOCAB / 2))
    assert report.smoothed_rows == VOCAB
    assert report.smoothed.heldout_r2 == pytest.approx(naive(x, y, np.arange(VOCAB))[0], abs=1e-9)


def test_never_label_rows_are_a_control(matrix, report):
    x, counts = matrix[0].numpy(), matrix[1]
    never = np.flatnonzero(counts == 0)
    assert report.never_labels.rows == 10
    assert report.never_labels.prediction == pytest.approx(
        (x[never] @ np.array(report.slope)).mean() + report.intercept, abs=1e-9
    )
    units = x[never] - x[counts > 0].mean(0)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    cosines = (units @ units.T)[np.triu_indices(10, 1)]
    assert report.never_labels.cosine == pytest.approx(cosines.mean(), abs=1e-9)


def test_a_shift_of_all_rows_and_a_scale_change_nothing(matrix, report):
    embedding, counts = matrix
    moved = report_matrix(3 * embedding + 5, counts=counts, draws=0)
    for name in ("probe", "permuted", "row_norm", "smoothed"):
        for figure, value in vars(getattr(moved, name)).items():
            assert value == pytest.approx(getattr(getattr(report, name), figure), abs=1e-8), (name, figure)
    assert moved.sparsity is None


def test_channels_put_only_the_bias_outside(matrix):
    embedding, counts = matrix
    bias = torch.from_numpy(np.log(np.maximum(counts, 0.5))).float()
    found = report_matrix(
        embedding,
        counts=counts,
        head_bias=bias,
        norm_bias=torch.zeros(DIM),
        norm_scale=torch.full((DIM,), 2.0),
        draws=0,
    )
    assert found.channels.head_bias == pytest.approx(1)
    assert found.channels.head_bias_r2 == pytest.approx(1, abs=1e-5)
    assert math.isnan(found.channels.norm_bias)
    assert found.channels.rest is None
    assert found.channels.embedding_r2 == pytest.approx(found.probe.heldout_r2, abs=1e-9)
    assert found.folded_row_norm.heldout_r2 == pytest.approx(found.row_norm.heldout_r2, abs=1e-9)
    text = found.render()
    assert "head bias b, rank correlation" in text
    assert "outside E" in text


def test_text_names_what_each_figure_stands_against(report):
    text = report.render()
    for part in (
        "null",
        "baseline",
        "reference",
        "k/(n - 1)",
        "Haar rotations",
        "random order",
        "a control",
        "variance",
    ):
        assert part in text, part
    assert f"{report.probe.heldout_r2:.3f}" in text
    assert "One matrix says nothing about when" in text
    assert max(map(len, text.splitlines())) <= 118


def test_json_has_null_for_what_is_not_defined(matrix):
    embedding, counts = matrix
    found = report_matrix(embedding, counts=np.where(counts > 0, 7, 0), draws=2).to_dict()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["probe"]["heldout_r2"] is None
    assert found["covariates"] is None
    assert found["covariate_gain"] is None


def test_equal_counts_leave_nothing_to_judge(matrix):
    embedding, counts = matrix
    text = report_matrix(embedding, counts=np.where(counts > 0, 7, 0), draws=2).render()
    assert "No probe can be judged" in text
    assert "nan" not in text


@pytest.mark.parametrize("counted", [1, 2, 8])
def test_fewer_tokens_than_dimensions(counted):
    embedding, _ = planted(vocab=40)
    few = np.where(np.arange(40) < counted, np.arange(40) + 1, 0)
    found = report_matrix(embedding, counts=few, draws=2)
    assert found.rows == counted
    assert found.rank == counted - 1
    assert math.isnan(found.probe.adjusted_r2)
    assert "nan" not in found.render()
    assert found.sparsity is None, "of a slope that predicts nothing there is nothing to say"
    assert "dimensions carry" not in found.render()


def test_drift_of_matrices_that_are_broken_or_of_another_shape(matrix):
    embedding, counts = matrix
    broken = embedding.clone()
    broken[0] = torch.inf
    found = report_matrix(embedding, counts=counts, others=[("same", embedding), ("broken", broken)], draws=0)
    same, lost = found.drift
    assert (same.slope_cosine, same.permuted_slope_cosine) == pytest.approx((1, 1))
    assert same.transfer_r2 == pytest.approx(same.own_heldout_r2) == pytest.approx(found.probe.heldout_r2)
    assert math.isnan(lost.slope_cosine)
    with pytest.raises(ValueError, match="wide has shape"):
        report_matrix(embedding, counts=counts, others=[("wide", embedding[:, :3])], draws=0)


def test_noise_claims_nothing():
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(VOCAB, DIM, generator=generator)
    found = report_matrix(noise, counts=planted()[1], draws=0)
    assert found.probe.heldout_r2 < 0.01
    assert "No frequency is shown" in found.render()


def test_repeated_calls_agree_and_leave_the_global_generator_alone(matrix):
    embedding, counts = matrix
    before = torch.random.get_rng_state()
    first = report_matrix(embedding, counts=counts, draws=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == report_matrix(embedding, counts=counts, draws=2)


def test_bad_rows_are_named(matrix):
    embedding, counts = matrix[0].clone(), matrix[1]
    embedding[[7, 21]] = torch.nan
    embedding[-1] = torch.inf  # never counted: no part of the fit
    with pytest.raises(ValueError, match=r"rows \[7, 21\] .* NaN or inf.*--exclude"):
        report_matrix(embedding, counts=counts, draws=0)
    found = report_matrix(embedding, counts=counts, exclude=[7, 21], draws=0)
    assert found.rows == VOCAB - 12
    assert found.never_labels.rows == 9
    assert found.smoothed_rows == VOCAB - 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": np.ones(VOCAB + 1, dtype=np.int64)}, "601 entries.* 600 rows"),
        ({"counts": np.ones(VOCAB - 5, dtype=np.int64)}, "595 entries.* 600 rows.*vocab_size"),
        ({"vocab_size": VOCAB + 1}, "vocab_size=601 does not fit"),
        ({"min_count": 10**12}, "no token is left"),
        ({"exclude": [VOCAB]}, "excluded ids"),
        ({"token_texts": ["a"] * (VOCAB + 1)}, "tokenizer has 601 entries"),
        ({"token_texts": ["a"] * 20}, "tokenizer has 20 entries, but id 589 is counted"),
        ({"head_bias": torch.zeros(3)}, r"head_bias has shape \(3,\)"),
    ],
)
def test_what_does_not_fit_is_said(matrix, change, message):
    embedding, counts = matrix
    with pytest.raises(ValueError, match=message):
        report_matrix(embedding, **{"counts": counts, "draws": 0} | change)


def test_a_store_brings_counts_settings_and_drift(store, matrix):
    found = report_source(store, draws=0)
    assert (found.step, found.min_count, found.excluded) == (8, 2, (3,))
    assert found.rows == int((matrix[1] >= 2).sum()) - int(matrix[1][3] >= 2)
    (before,) = found.drift
    assert before.other == "snapshot before, step 4"
    assert before.slope_cosine == pytest.approx(1, abs=1e-4)
    assert before.transfer_r2 == pytest.approx(found.probe.heldout_r2, abs=1e-4)
    assert {name: one.value for name, one in found.recorded.items()} == {"channel.mean_hidden": pytest.approx(0.8)}
    assert "of E.mu" in found.render()
    early = report_source(store, step=0, draws=0, min_count=1, exclude=[5])
    assert early.excluded == (3, 5)
    (last,) = early.drift
    assert last.other == "last snapshot, step 8"
    assert abs(last.slope_cosine) < 0.99
    assert "The slope against other steps" in early.render()


def test_a_step_without_a_matrix_lists_those_with_one(store):
    with pytest.raises(ValueError, match="no matrix at step 5; steps with one: 0, 4, 8"):
        report_source(store, step=5)


def test_a_matrix_against_what_the_model_has_seen(tmp_path, matrix):
    embedding, counts = matrix
    layout = Layout(vocab=VOCAB, dim=DIM, groups=(), sketch_size=0, token_count=counts[::-1].copy())
    with closing(StoreWriter(tmp_path / "run.zarr", layout)) as writer:
        for step in (0, 4):
            writer.append(step, {}, snapshot=embedding.float().numpy(), label_counts=step * counts)
    seen, corpus = (report_source(tmp_path / "run.zarr", draws=0, seen=seen) for seen in (True, False))
    assert (seen.counts_from, seen.tokens) == ("labels trained on up to step 4", 4 * counts.sum())
    assert (corpus.counts_from, corpus.tokens) == ("the store's corpus counts", counts.sum())
    assert seen.probe.heldout_r2 > corpus.probe.heldout_r2
    with pytest.raises(ValueError, match="counted no labels up to step 0"):
        report_source(tmp_path / "run.zarr", step=0, seen=True)
    with pytest.raises(ValueError, match="leave counts="):
        report_source(tmp_path / "run.zarr", counts=tmp_path / "counts.npy", seen=True)
    np.save(tmp_path / "head.npy", embedding.numpy())
    with pytest.raises(ValueError, match="is a file"):
        report_source(tmp_path / "head.npy", seen=True)


def test_labels_stand_in_for_corpus_counts(tmp_path, matrix):
    embedding, counts = matrix
    layout = Layout(vocab=VOCAB, dim=DIM, groups=(), sketch_size=0)
    with closing(StoreWriter(tmp_path / "run.zarr", layout)) as writer:
        for step in (0, 4):
            writer.append(step, {}, snapshot=embedding.float().numpy(), label_counts=step * counts)
    found = report_source(tmp_path / "run.zarr", draws=0)
    assert found.counts_from == "labels trained on up to step 4"
    assert found.tokens == 4 * counts.sum()
    with pytest.raises(ValueError, match="holds no token counts"):
        report_source(tmp_path / "run.zarr", step=0)
    np.save(tmp_path / "counts.npy", np.ones(VOCAB + 1, dtype=np.int64))
    with pytest.raises(ValueError, match="601 entries"):
        report_source(tmp_path / "run.zarr", counts=tmp_path / "counts.npy")


def test_files_are_read_as_they_are(tmp_path, matrix):
    embedding, counts = matrix
    np.save(tmp_path / "counts.npy", counts)
    np.save(tmp_path / "head.npy", embedding.numpy())
    half = {
        "embed_out.weight": embedding.to(torch.bfloat16),
        "embed_out.bias": torch.ones(VOCAB),
        "embed_in.weight": torch.zeros(VOCAB, DIM),
        "gpt_neox.final_layer_norm.weight": torch.ones(DIM),
        "gpt_neox.final_layer_norm.bias": torch.ones(DIM),
    }
    save_file(half, tmp_path / "model.safetensors")
    whole = report_source(tmp_path / "head.npy", counts=tmp_path / "counts.npy", draws=0)
    assert whole.probe == report_matrix(embedding, counts=counts, draws=0).probe
    found = open_matrix(tmp_path / "model.safetensors")
    assert found.key == "embed_out.weight"
    assert torch.equal(found.embedding, embedding.to(torch.bfloat16).float())
    assert found.head_bias is not None
    assert found.norm_bias is not None
    assert open_matrix(tmp_path / "model.safetensors", key="embed_in.weight").head_bias is None
    with pytest.raises(ValueError, match=r"no matrix 'lm_head'.*embed_out.weight \(600, 12\)"):
        open_matrix(tmp_path / "model.safetensors", key="lm_head")
    with pytest.raises(ValueError, match="holds no token counts"):
        report_source(tmp_path / "head.npy")
    with pytest.raises(ValueError, match="leave step out"):
        open_matrix(tmp_path / "head.npy", step=3)
    with pytest.raises(ValueError, match="leave key out"):
        open_matrix(tmp_path / "head.npy", key="x")


def test_a_models_folder_is_read_as_a_suite_reads_it(tmp_path, matrix):
    embedding, counts = matrix
    np.save(tmp_path / "counts.npy", counts)
    head, inner = embedding.clone(), {"model.layers.0.mlp.up.weight": torch.ones(7, DIM)}
    folders = {
        "untied": ({"lm_head.weight": head, "model.embed_tokens.weight": -head, **inner}, False),
        "tied": ({"model.embed_tokens.weight": head, **inner}, True),
    }
    for name, (tensors, tied) in folders.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        config = {"model_type": "llama", "vocab_size": VOCAB, "tie_word_embeddings": tied}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        found = open_matrix(tmp_path / name)
        assert found.key == head_key(open_checkpoint(tmp_path / name)).key
        assert torch.equal(found.embedding, embedding)
        assert found.key in found.notes[0]
    torch.save({"lm_head.weight": head, "model.embed_tokens.weight": -head}, tmp_path / "tied" / "pytorch_model.bin")
    (tmp_path / "tied" / "model.safetensors").unlink()
    assert torch.equal(open_matrix(tmp_path / "tied", key="lm_head.weight").embedding, embedding)
    report = report_source(tmp_path / "untied", counts=tmp_path / "counts.npy", draws=0)
    assert report.probe == report_matrix(embedding, counts=counts, draws=0).probe
    with pytest.raises(ValueError, match="is a model: leave step out"):
        open_matrix(tmp_path / "untied", step=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no store, and no model"):
        open_matrix(tmp_path / "empty")


def test_nothing_is_guessed_among_several_matrices(tmp_path):
    two = {"a.weight": torch.ones(5, 2), "b.weight": torch.ones(5, 2)}
    save_file(two, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"no tensor has a name known.*--key KEY"):
        open_matrix(tmp_path / "two.safetensors")
    embedding = {"model.embed_tokens.weight": torch.ones(5, 2)}
    save_file(two | embedding, tmp_path / "open.safetensors")
    with pytest.raises(ValueError, match=r"would be it if it were tied, but so could a\.weight, b\.weight"):
        open_matrix(tmp_path / "open.safetensors")
    save_file(embedding | {"model.layers.0.mlp.up.weight": torch.ones(5, 2)}, tmp_path / "tied.safetensors")
    found = open_matrix(tmp_path / "tied.safetensors")
    assert found.key == "model.embed_tokens.weight"
    assert "no other matrix here could be a head" in found.notes[0]


def test_what_is_no_matrix_is_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "whole.npy", np.ones((3, 2), dtype=np.int64))
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "model.bin").write_bytes(b"x")
    for name, message in (
        ("objects.npy", "holds no array"),
        ("whole.npy", "needed is one floating matrix"),
        ("bad.safetensors", "announces a header"),
        ("model.bin", "needed is a store"),
    ):
        with pytest.raises(ValueError, match=message):
            open_matrix(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_matrix(tmp_path / "none.npy")


def test_token_texts_of_a_tokenizer(tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"\u2581the": 0, "cat": 1, "<end>": 2}, unk_token="cat"))
    made.add_special_tokens(["<end>"])
    made.save(str(tmp_path / "tokenizer.json"))
    assert read_token_texts(tmp_path / "tokenizer.json") == ["\u2581the", "cat", "<end>"]
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokenizer"):
        read_token_texts(tmp_path / "bad.json")
    with pytest.raises(FileNotFoundError):
        read_token_texts(tmp_path / "none.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"trainhooks\[corpora\]"):
        read_token_texts(tmp_path / "tokenizer.json")


def test_numbers_in_text():
    assert number(float("nan")) == number(None) == "-"
    assert spread([1.0, 3.0, float("nan")]) == "2.000 (1.000 to 3.000)"
    assert spread([]) == "-"
    assert place(3.0, [1.0, 2.0]) == "above all 2"
    assert place(0.0, [1.0, 2.0]) == "below all 2"
    assert place(1.5, [1.0, 2.0]) == "within"
    assert place(float("nan"), [1.0]) == "-"


def test_command_prints_text_or_json(store, capsys):
    command = ["probe", str(store), "--step", "4", "--draws", "0", "--exclude", "1", "2"]
    app(command, result_action="return_value")
    assert "Log-linear probe of token frequency" in capsys.readouterr().out
    app([*command, "--json"], result_action="return_value")
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 4
    assert found["excluded"] == [1, 2, 3]
    with pytest.raises(SystemExit) as left:
        app(["probe", str(store), "--step", "3"], result_action="return_value")
    assert left.value.code == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_on_a_real_series():
    folder = DATA / "series" / "charrnn-sherlock" / "step2000"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: set TRAINHOOKS_DATA to a folder with it.")
    counts = np.arange(1, 98)
    found = open_matrix(folder / "model.safetensors")
    assert found.key == "embed_out.weight"
    report = report_matrix(found.embedding, counts=counts, head_bias=found.head_bias, draws=2)
    assert (report.rows, report.dim, report.rank) == (97, 128, 96)
    assert math.isnan(report.probe.adjusted_r2)
    assert report.channels.head_bias is not None
