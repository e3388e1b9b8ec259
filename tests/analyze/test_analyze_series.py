"""A real series against a plain NumPy script."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.stats import spearmanr

from trainhooks.analyze import analyze_suite
from trainhooks.store import open_store

DATA = Path(os.environ.get("TRAINHOOKS_DATA", Path(__file__).parents[3] / "shared" / "data"))
SERIES = DATA / "series" / "charrnn-sherlock"
STEPS = (0, 1000, 2000)

pytestmark = pytest.mark.skipif(not SERIES.is_dir(), reason=f"no series at {SERIES}; set TRAINHOOKS_DATA")


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(0).integers(1, 5000, 97)


@pytest.fixture(scope="module")
def store(tmp_path_factory, counts):
    out = tmp_path_factory.mktemp("series") / "run.zarr"
    report = analyze_suite(SERIES, counts=counts, out=out, params="all", workers=1, snapshots=True)
    assert report.steps == STEPS
    assert not report.failed
    return open_store(out)


@pytest.fixture(scope="module")
def plain():
    files = [load_file(SERIES / f"step{step}" / "model.safetensors") for step in STEPS]
    return [{key: value.astype(np.float64) for key, value in file.items()} for file in files]


def centred(matrix):
    return matrix - matrix.mean(axis=0)


def test_geometry_and_distance_to_final(store, plain):
    heads = [centred(file["embed_out.weight"]) for file in plain]
    norms = [np.linalg.norm(head, axis=1).mean() for head in heads]
    np.testing.assert_allclose(store["geometry.row_norm"], norms, rtol=2e-5)
    distance = [np.linalg.norm(head - heads[-1]) / np.linalg.norm(heads[-1]) for head in heads]
    np.testing.assert_allclose(store["convergence.head_distance_to_final"], distance, rtol=2e-5)
    initial = [np.linalg.norm(head - heads[0]) / np.linalg.norm(heads[0]) for head in heads]
    np.testing.assert_allclose(store["geometry.distance_to_initial"], initial, rtol=2e-5)
    cosine = [np.vdot(head, heads[-1]) / np.linalg.norm(head) / np.linalg.norm(heads[-1]) for head in heads]
    np.testing.assert_allclose(store["convergence.head_cosine_to_final"], cosine, rtol=2e-5)


def test_groups_to_final_are_exact(store, plain):
    groups = {
        "whole": list(plain[0]),
        "embedding": ["embed_in.weight"],
        "layers.0": ["lstm.layers.0.bias", "lstm.layers.0.kernel"],
        "layers.1": ["lstm.layers.1.bias", "lstm.layers.1.kernel"],
        "output_embedding": ["embed_out.weight", "embed_out.bias"],
    }
    assert store.groups == tuple(groups)
    for column, keys in enumerate(groups.values()):
        flat = [np.concatenate([file[key].ravel() for key in keys]) for file in plain]
        norms = [np.linalg.norm(values) for values in flat]
        np.testing.assert_allclose(store["convergence.norm"][:, column], norms, rtol=2e-6)
        distance = [np.linalg.norm(values - flat[-1]) / norms[-1] for values in flat]
        np.testing.assert_allclose(store["convergence.exact_distance_to_final"][:, column], distance, rtol=2e-5)
        unit = [np.linalg.norm(values / n - flat[-1] / norms[-1]) for values, n in zip(flat, norms, strict=True)]
        np.testing.assert_allclose(
            store["convergence.exact_unit_distance_to_final"][:, column], unit, rtol=2e-5, atol=1e-7
        )


def test_held_out_correlation(store, plain, counts):
    y = -np.log(counts / counts.sum())
    folds = np.arange(97) % 5
    for record, file in enumerate(plain):
        rhos = []
        for fold in range(5):
            x, held = file["embed_out.weight"], folds == fold
            mean = x[~held].mean(axis=0)
            slope = np.linalg.lstsq(x[~held] - mean, y[~held] - y[~held].mean(), rcond=None)[0]
            rhos.append(spearmanr((x[held] - mean) @ slope, y[held]).statistic)
        assert store["probe.heldout_spearman"][record] == pytest.approx(np.mean(rhos), abs=2e-3)


def test_snapshots_are_the_matrices(store, plain):
    for step, file in zip(STEPS, plain, strict=True):
        np.testing.assert_array_equal(store.output_embedding(step), file["embed_out.weight"].astype(np.float32))
