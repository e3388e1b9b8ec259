import csv
import io
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from loops import COUNTS, TinyLM, batches, train

import trainhooks as th
from trainhooks.cli import app
from trainhooks.run_figures import FIGURES, drawings, read_run, read_runs
from trainhooks.run_figures.course import dynamics_drawing
from trainhooks.run_figures.draw_all import figures
from trainhooks.run_figures.run_numbers import labels
from trainhooks.run_figures.taken import positions, take
from trainhooks.store.storage.local import LocalStorage


class CountingStorage(LocalStorage):
    """Notes how often each file of a matrix is mapped or read."""

    def __init__(self, path):
        super().__init__(path)
        self.seen = Counter()

    def mmap(self, key):
        self.seen[key] += key.startswith("output_embedding/c/")
        return super().mmap(key)

    def read(self, key, start=0, stop=None):
        self.seen[key] += key.startswith("output_embedding/c/")
        return super().read(key, start, stop)


@pytest.fixture(scope="module")
def numbers(small_run):
    return read_run(small_run.store)


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def curves(drawing):
    return {(panel.title, curve.label): curve for panel in drawing.panels for curve in panel.curves}


@pytest.fixture(scope="module")
def written(small_run, tmp_path_factory):
    return {one.name: one for one in figures(small_run.store, out=tmp_path_factory.mktemp("figures"), format="svg")}


def test_every_figure_comes_with_its_caption_and_its_numbers(written):
    assert set(written) == set(FIGURES)
    drawn = {name: one for name, one in written.items() if one.path}
    assert set(FIGURES) - set(drawn) == {"deletion", "steering"}
    assert "--interventions" in written["steering"].left_out
    for name, one in drawn.items():
        assert "<svg" in one.path.read_text(encoding="utf-8")[:1000], name
        assert len(one.caption.read_text(encoding="utf-8")) > 100
        roles = {row["role"] for row in rows_of(one.numbers)}
        assert roles & {"null", "baseline"} or name == "components", name  # whose null stands in its titles


def test_the_numbers_beside_a_picture_are_the_stores(small_run, written):
    store, rows = th.open_store(small_run.store), rows_of(written["dynamics"].numbers)
    probe = [float(row["y"]) for row in rows if row["curve"] == "probe"]
    np.testing.assert_array_equal(probe, store["probe.heldout_spearman"])
    whole = [float(row["y"]) for row in rows if row["curve"] == "whole model"]
    np.testing.assert_array_equal(whole, store["convergence.distance_to_final"][:, store.groups.index("whole")])
    assert "probe" in written["dynamics"].path.read_text(encoding="utf-8")  # text stays text


def test_a_probed_matrix_has_the_live_probes_figures(small_run, numbers):
    store = th.open_store(small_run.store)
    assert [state.step for state in numbers.states][:: len(numbers.states) - 1] == [0, 40]
    spectra = store["spectrum.singular_values"]
    assert np.isfinite(spectra).all(1).sum() > 10  # not in every record
    for state in numbers.states:
        place = store.steps.tolist().index(state.step)
        assert state.spearman == pytest.approx(store["probe.heldout_spearman"][place], abs=1e-6)
        assert state.permuted_spearman == pytest.approx(store["probe.permuted_heldout_spearman"][place], abs=1e-6)
        assert state.norm_spearman == pytest.approx(store["probe.row_norm_spearman"][place], abs=1e-6)
        if np.isfinite(spectra[place]).all():
            np.testing.assert_allclose(state.singular_values, spectra[place], rtol=1e-3)


def test_what_is_drawn_of_a_matrix_is_what_a_slow_second_way_gives(small_run, numbers):
    store, state, tokens = th.open_store(small_run.store), numbers.states[-1], numbers.tokens
    matrix = torch.from_numpy(store.output_embedding(40)).double()
    y = -np.log(COUNTS / COUNTS.sum())
    np.testing.assert_allclose(state.true, y[tokens.shown], rtol=1e-12)
    fit = th.fit_probe(matrix, torch.from_numpy(y), mask=torch.from_numpy(COUNTS > 0))
    token = int(tokens.shown[3])
    by_hand = matrix[token] @ fit.fold_slope[token % 5] + fit.fold_intercept[token % 5]
    assert state.predicted[3] == pytest.approx(float(by_hand), rel=1e-5)
    np.testing.assert_allclose(state.saliency, fit.slope.abs() * matrix.std(0, correction=0), rtol=1e-4)
    centred = matrix - matrix.mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    found = np.abs(np.corrcoef(state.components[:, 0], (left[:, 0] * values[0])[tokens.shown])[0, 1])
    assert found == pytest.approx(1.0, abs=1e-6)
    assert np.corrcoef(state.components[:, 0], -state.true)[0, 1] >= 0
    assert state.component_shares[0] == pytest.approx(float(values[0] ** 2 / values.square().sum()), rel=1e-5)
    first = th.open_store(small_run.store).output_embedding(0)
    bins = np.floor(np.log10(COUNTS)).astype(int)
    rows = bins == bins.max()
    way = np.linalg.norm(first[rows] - matrix[rows].numpy()) / np.linalg.norm(matrix[rows].numpy())
    assert numbers.states[0].distance_by_bin[-1] == pytest.approx(way, rel=1e-5)


def test_no_matrix_is_read_twice(small_run):
    storage = CountingStorage(small_run.store)
    assert read_run(th.open_store(storage)).lead is not None
    assert storage.seen.total() > 0
    assert max(storage.seen.values()) == 1


def test_few_blocks_are_read_of_a_long_run():
    class Long:
        vocab, dim = 100, 4
        snapshot_steps = np.arange(1001)

        class snapshots:
            block_of = np.arange(1001) // 32

    chosen = positions(Long)
    assert chosen[0] == 0
    assert chosen[-1] == 1000
    assert len(chosen) <= 64
    assert len({place // 32 for place in chosen.tolist()}) <= 8


def test_matrices_that_do_not_fit_are_fewer():
    class Large:
        vocab, dim = 50304, 4096
        snapshot_steps = np.arange(100)

        class snapshots:
            block_of = np.arange(100)

    assert len(positions(Large)) == 3


def test_matrices_come_from_the_journal_too(tmp_path):
    model = TinyLM()
    with th.Recorder(model, store=tmp_path / "run.zarr", counts=COUNTS) as recorder:
        train(model, batches(34), recorder)
        store = th.open_store(tmp_path / "run.zarr")
        taken = take(store)
        for place, step in enumerate(taken.steps):
            np.testing.assert_array_equal(taken[place], store.output_embedding(step))
        run = read_run(store, lead=False)
        assert "so far" in run.missing["final"]
        assert run.group("whole")[-1] == 0.0


def test_the_lead_in_the_figure_is_the_verdicts(small_run, numbers):
    analysis = th.analyze_store(small_run.store)
    drawing = next(drawing for drawing, _ in drawings([numbers]) if drawing.name == "lead")
    found = curves(drawing)
    if len(numbers.states) == analysis.records_total:
        np.testing.assert_array_equal(found["progress", "frequency part"].y, analysis.curves.frequency)
    assert numbers.lead.records_total == analysis.records_total == 41
    lead = numbers.lead.leads[0]
    assert found["lead", "frequency"].y[0] == pytest.approx(lead.lead, nan_ok=True)
    assert found["lead", "labellings without meaning (5-95%)"].y.tolist() == pytest.approx(
        [null.median for null in lead.nulls.values()], nan_ok=True
    )


def test_several_runs_are_told_apart(small_run, other_seed):
    runs = read_runs([small_run.store, other_seed.store], lead=False)
    found = {drawing.name: drawing for drawing, _ in drawings(runs)}
    both = [c for c in found["dynamics"].panels[0].curves if c.role == "frequency"]
    assert [(c.run, len(c.x)) for c in both] == [(0, 41), (1, 13)]
    assert len({c.label for c in both}) == 2
    assert {"scatter_1", "scatter_2"} <= set(found)


def test_the_random_walk_is_there_where_the_first_run_has_no_distances(small_run, other_seed):
    first, second = read_runs([small_run.store, other_seed.store], lead=False)
    for runs, own in (((first, second), 0), ((replace(first, distance=None), second), 1)):
        (null,) = (curve for curve in dynamics_drawing(runs).panels[1].curves if curve.role == "null")
        assert null.run == own
        assert null.y[0] == runs[own].group("output_embedding")[0]


def test_labels_are_what_tells_paths_apart():
    assert labels(["/r/a/run.zarr", "/r/b/run.zarr"]) == ("a", "b")
    assert labels(["/r/a.zarr", "/r/b/run.zarr"]) == ("a.zarr", "b/run.zarr")
    assert labels(["/runs/demo/run.zarr"]) == ("demo",)
    assert labels(["run.zarr"]) == ("run.zarr",)


def test_a_store_without_counts_or_matrices_says_what_is_left_out(tmp_path, capsys):
    model = TinyLM()
    with th.Recorder(model, store=tmp_path / "run.zarr", snapshot_schedule=th.Steps([99])) as recorder:
        train(model, batches(6), recorder)
    with pytest.raises(SystemExit) as ended:
        app(["figures", str(tmp_path / "run.zarr"), "--out", str(tmp_path / "o"), "--format", "pdf", "--json"])
    assert ended.value.code == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert (tmp_path / "o" / "layers.pdf").read_bytes().startswith(b"%PDF")
    assert found["layers"]["path"] == str(tmp_path / "o" / "layers.pdf")
    assert found["scatter"]["path"] is None
    assert "no token counts" in found["scatter"]["left_out"]
    assert "no output embeddings" in found["components"]["left_out"]
    assert "token counts" in found["lead"]["left_out"]


def deletion_result():
    codes = ["zero/ascending", "zero/random-0", "zero/random-1", "rank_k"]
    measures = {name: [0.0, 0.1, None] for name in ("kl", "js", "agreement", "loss_change")}
    return {"deleted_shares": [0.25, 0.5, 1.0], "codes": [{"code": code, **measures} for code in codes]}


def steering_result():
    edit = {"feasible": True, "requested": 2.0, "achieved": 1.9}
    names = ("saliency", "random_norm")
    edits = [
        {**edit, "direction": name, "requested": r, "achieved": a} for name in names for r, a in ((0.5, 0.6), (2, 1.9))
    ]
    return {"model": "m", "steering": {"edits": [*edits, {**edit, "direction": "saliency", "feasible": False}]}}


def test_results_of_prune_and_steer_are_drawn(small_run, tmp_path):
    paths = []
    for name, result in (("prune", deletion_result()), ("steer", steering_result())):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(result))
    run = read_run(small_run.store, lead=False)
    found = {drawing.name: curves(drawing) for drawing, _ in drawings([run], interventions=paths)}
    assert found["deletion"]["output moved", "2 random orders"].role == "null"
    np.testing.assert_allclose(found["deletion"]["output moved", "ascending"].y, [0.0, 0.1, np.nan])
    saliency, random = (found["steering_2"]["steering", name] for name in ("saliency", "random norm"))
    np.testing.assert_allclose(saliency.y, [0.6, 1.9])
    assert (saliency.x < random.x).all()  # side by side: none hides another
    assert random.role == "null"


NO_RESULTS = [
    *("no json", "{}", '{"codes": 3}', '{"steering": {"edits": [{}]}}', '{"codes": [], "deleted_shares": []}'),
    *('{"codes": [{"code": "rank_k", "js": [0], "loss_change": [0]}], "deleted_shares": [0.1]}', "[" * 100_000),
    '{"codes": [{"code": "zero/a", "js": [1%s], "loss_change": [0]}], "deleted_shares": [0.1]}' % ("0" * 400),
]


@pytest.mark.parametrize("text", NO_RESULTS, ids=range(len(NO_RESULTS)))
def test_a_file_that_is_no_result_is_refused_before_work(small_run, tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        figures(small_run.store, out=tmp_path / "out", interventions=[tmp_path / "x.json"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stores", [[], ["twice", "twice"]])
def test_no_store_and_one_given_twice_are_refused(small_run, tmp_path, stores):
    with pytest.raises(ValueError, match="store"):
        figures(*[small_run.store for _ in stores], out=tmp_path)
