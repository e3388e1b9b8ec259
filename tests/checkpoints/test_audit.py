import hashlib
import json
import math
import os
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub_server import Hub, serving
from safetensors.torch import save as save_bytes
from safetensors.torch import save_file

from trainhooks.checkpoints.audit.audit import audit_suite
from trainhooks.checkpoints.audit.continuity import compare, jumps, spikes, unrelated
from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.checkpoints.suite import CheckpointRef, Suite, list_suite
from trainhooks.checkpoints.tensor_cache import TensorCache
from trainhooks.cli import app
from trainhooks.cli.audit import audit as audit_command  # noqa: F401 - registers the command

SERIES = (
    Path(os.environ.get("TRAINHOOKS_DATA", Path(__file__).parents[3] / "shared" / "data"))
    / "series"
    / "charrnn-sherlock"
)
KEY = "lm_head.weight"
VOCAB, DIM = 40, 6


class Fake:
    """A checkpoint in memory; `tensors` maps keys to tensors, `fail` is raised on reading."""

    def __init__(self, tensors, *, fail=None):
        self.name = "fake"
        self.config = {"model_type": "unknown", "tie_word_embeddings": False}
        self._tensors = tensors
        self._fail = fail
        self.tensors = {
            key: TensorEntry(key, str(t.dtype).removeprefix("torch."), tuple(t.shape), "file", t.nbytes)
            for key, t in tensors.items()
        }

    def read(self, key):
        if self._fail is not None:
            raise self._fail
        return self._tensors[key]

    def identity(self, key, *, full=False):
        return hashlib.sha256(self._tensors[key].numpy().tobytes()).hexdigest()


def run(steps, *, seed=0):
    """A run's matrices: it turns and grows with log(1 + t), with a little noise of its own at every step."""
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, VOCAB, DIM, generator=generator)
    states = {}
    for step in steps:
        way = math.log1p(step) / math.log1p(100_000)
        states[step] = start + 2 * way * end + 0.01 * torch.randn(VOCAB, DIM, generator=generator)
    return states


def audited(states, *, kind="list", name="run", wanted=None, params=KEY, **settings):
    """Audit states: tensors, checkpoints, or exceptions that opening raises."""
    suite = Suite(name, tuple(CheckpointRef(step, f"place{step}") for step in sorted(states)), kind=kind, wanted=wanted)

    def opener(entry):
        state = states[entry.step]
        if isinstance(state, Exception):
            raise state
        return state if isinstance(state, Fake) else Fake({KEY: state})

    return audit_suite(suite, params=params, opener=opener, **settings)


def kinds(audit):
    return [(finding.kind, finding.steps) for finding in audit.findings]


LINEAR = tuple(range(0, 11000, 1000))
GRID = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 12000, 1000))


@pytest.mark.parametrize("steps", [LINEAR, GRID, (0,), (0, 1000), (0, 1000, 2000)])
def test_a_sound_run_is_clean(steps):
    audit = audited(run(steps))
    assert audit.clean, audit.render()
    assert audit.broken == {}
    assert len(audit.pairs) == len(steps) - 1
    assert audit.tensors == (KEY,)


@pytest.mark.parametrize("seed", range(5))
def test_random_walks_and_noise_are_clean(seed):
    generator = torch.Generator().manual_seed(seed)
    moves = torch.randn(12, VOCAB, DIM, generator=generator)
    assert audited(dict(zip(LINEAR, torch.cumsum(moves, 0) + 3, strict=False))).clean
    resting = torch.randn(VOCAB, DIM, generator=generator) + 0.1 * moves
    assert audited(dict(zip(range(1000, 13000, 1000), resting, strict=True))).clean


def test_final_weights_under_an_early_step_are_out_of_line():
    states = run(GRID)
    states[64] = states[11000] * 1.0001
    audit = audited(states)
    assert kinds(audit) == [("discontinuity", (64,))]
    assert list(audit.broken) == [64]
    assert "from step 32" in audit.broken[64]


def test_two_in_a_row_are_a_jump_there_and_back():
    states = run(LINEAR)
    other = run(LINEAR, seed=1)
    states[5000], states[6000] = other[5000] * 0.1 + states[5000] + 3 * other[0], states[6000] + 3 * other[0]
    assert kinds(audited(states)) == [("discontinuity", (4000, 5000)), ("discontinuity", (6000, 7000))]
    assert audited(states).broken == {}


def test_identical_neighbours_keep_the_first():
    states = run((0, 1, 2, 4, 8, 16))
    states[1] = states[2] = states[0].clone()
    audit = audited(states)
    assert kinds(audit) == [("identical", (0, 1, 2))]
    assert list(audit.broken) == [1, 2]
    assert list(audit.pairs) == [(0, 4), (4, 8), (8, 16)]


def test_identical_far_apart_are_all_broken_but_the_last_step():
    states = run(LINEAR)
    states[1000] = states[4000] = states[8000].clone()
    assert list(audited(states).broken) == [1000, 4000, 8000]
    states = run(LINEAR)
    states[0] = states[4000] = states[10000].clone()
    assert list(audited(states).broken) == [0, 4000]


def test_identical_with_known_reports_keeps_who_is_not_reported():
    states = run((0, 1000, 143000))
    states[0] = states[1000] = states[143000].clone()
    fakes = {step: Fake({KEY: state}) for step, state in states.items()}
    audit = audited(fakes, kind="hub", name="EleutherAI/pythia-2.8b", wanted=(0, 1000, 143000))
    assert kinds(audit) == [("known bad", (0, 1000)), ("identical", (0, 1000, 143000))]
    assert list(audit.broken) == [0, 1000]
    assert "pythia/issues/205" in audit.broken[0]


def test_missing_steps_by_grid_by_wish_and_by_spacing():
    states = run([step for step in LINEAR if step != 3000])
    assert kinds(audited(states)) == [("missing", (3000,))]
    assert kinds(audited(states, wanted=(0, 1500, 2000))) == [("missing", (1500,))]
    audit = audited(states, kind="hub", name="EleutherAI/pythia-70m")
    assert 512 in audit.findings[0].steps
    assert 3000 in audit.findings[0].steps
    assert audit.broken == {}


def test_what_cannot_be_read_is_one_line_each_and_the_rest_goes_on():
    states: dict = run(LINEAR)
    states[2000] = CheckpointError("the index names no file\nmore")
    states[5000] = Fake({KEY: states[5000]}, fail=OSError("cut short"))
    states[7000] = Fake({"other": states[7000]})
    audit = audited(states)
    assert kinds(audit) == [("unreadable", (2000,)), ("unreadable", (5000,)), ("unreadable", (7000,))]
    assert audit.broken[2000] == "unreadable: step 2000: the index names no file"
    assert "no tensor fits" in audit.broken[7000]
    assert list(audit.pairs)[1:3] == [(1000, 3000), (3000, 4000)]


def test_equal_tensors_in_files_that_differ():
    states = run(LINEAR)
    fakes = {step: Fake({KEY: state}) for step, state in states.items()}
    fakes[3000] = Fake({KEY: states[2000].double()})
    audit = audited(fakes)
    assert ("identical", (2000, 3000)) in kinds(audit)
    assert list(audit.broken) == [3000]


def test_a_middle_that_differs_is_seen_by_hashing_in_full(tmp_path):
    for step in (0, 10):
        save(tmp_path / f"step{step}", {KEY: torch.zeros(1000, 700)})
    state = torch.zeros(1000, 700)
    state[500, 3] = 1
    save(tmp_path / "step20", {KEY: state})
    suite = list_suite(tmp_path)
    first, second, third = (suite.open(entry).identity(KEY) for entry in suite.entries)
    assert first == second == third
    assert kinds(audit_suite(suite, params=KEY)) == kinds(audit_suite(suite, params=KEY, full=True))
    assert kinds(audit_suite(suite, params=KEY)) == [("identical", (0, 10))]


def test_branches_without_weights_at_a_hub(monkeypatch):
    states: dict = run((0, 1000, 2000))
    states[1000] = CheckpointError("holds no weights")
    states[2000] = CheckpointError("bad header")
    names = {"step1000": ["config.json", "training_args.bin"], "step2000": ["model.safetensors"]}
    monkeypatch.setattr(
        "trainhooks.checkpoints.audit.header_checks.list_hub_folder",
        lambda repository, revision: SimpleNamespace(files=dict.fromkeys(names[revision]), folders=()),
    )
    entries = tuple(CheckpointRef(step, f"owner/name@step{step}") for step in states)
    fakes = {step: state if isinstance(state, Exception) else Fake({KEY: state}) for step, state in states.items()}

    def opener(entry):
        if isinstance(fakes[entry.step], Exception):
            raise fakes[entry.step]
        return fakes[entry.step]

    audit = audit_suite(Suite("owner/name", entries, kind="hub"), params=KEY, opener=opener)
    assert kinds(audit) == [("no weights", (1000,)), ("unreadable", (2000,))]


def test_a_real_client_at_a_hub(monkeypatch, tmp_path):
    import huggingface_hub
    import huggingface_hub.constants

    hub, repository = Hub(), "owner/name"
    for step, state in run((0, 1, 2, 4, 16)).items():
        hub.add(repository, f"stage1-step{step}-tokens{step}B", {"model.safetensors": save_bytes({KEY: state})})
    hub.add(repository, "main", {"model.safetensors": save_bytes({KEY: torch.zeros(VOCAB, DIM)})})
    hub.add(repository, "stage1-step8-tokens8B", {"README.md": b""})
    again = hub.revisions[repository]["stage1-step16-tokens16B"]
    hub.add(repository, "stage1-step32-tokens32B", again)
    with serving(hub) as address:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        suite = list_suite(repository, revision_pattern=r"stage1-step(\d+)-tokens\d+B")
        cache = TensorCache(tmp_path)
        audit = audit_suite(suite, params=KEY, opener=lambda entry: open_checkpoint(entry.location, cache=cache))
        huggingface_hub.close_session()
    assert suite.steps == (0, 1, 2, 4, 8, 16, 32)
    assert kinds(audit) == [("no weights", (8,)), ("identical", (16, 32))]
    assert list(audit.broken) == [8, 32]


def test_three_states_at_most_are_held():
    alive, most = weakref.WeakSet(), []

    class Counting(Fake):
        def read(self, key):
            tensor = self._tensors[key].clone()
            alive.add(tensor)
            most.append(len(alive))
            return tensor

    assert audited({step: Counting({KEY: state}) for step, state in run(LINEAR).items()}).clean
    assert len(most) == len(LINEAR)
    assert max(most) <= 3


def test_nan_and_infinity_are_broken():
    states = run(LINEAR)
    states[3000][1, 2] = math.nan
    states[4000][1, 2] = math.inf
    audit = audited(states)
    assert kinds(audit) == [("not finite", (3000,)), ("not finite", (4000,))]
    assert list(audit.broken) == [3000, 4000]
    assert json.dumps(audit.to_dict(), allow_nan=False)


def test_shapes_and_dtypes_that_change():
    states = run(LINEAR)
    states[2000] = states[2000][:-3].clone()
    states[6000] = states[6000].half()
    audit = audited(states)
    assert kinds(audit) == [("shape", (2000,)), ("dtype", (6000,))]
    assert list(audit.broken) == [2000]
    assert "37x6" in audit.broken[2000]
    two = {0: states[0], 1: states[1000][:5]}
    assert list(audited(two).broken) == [0]


def test_two_runs_under_one_name():
    states, other = run(LINEAR), run(LINEAR, seed=1)
    states[0] = other[0]
    states[1000] = other[1000]
    audit = audited(states)
    assert ("unrelated", (1000, 2000)) in kinds(audit)
    assert list(audit.broken) == [0, 1000]
    half = {step: (states if step < 5000 else other)[step] for step in LINEAR[2:8]}
    audit = audited(half)
    assert ("unrelated", (4000, 5000)) in kinds(audit)
    assert audit.broken == {}


def test_a_glob_reads_several_tensors_and_counts_them_together():
    first, second = run((0, 1000, 2000)), run((0, 1000, 2000), seed=1)
    states = {step: Fake({"a.w": first[step], "b.w": second[step], "c": first[step]}) for step in first}
    audit = audited(states, params="*.w")
    assert audit.tensors == ("a.w", "b.w")
    expected = math.hypot(*(centred_distance(run_[0], run_[1000]) for run_ in (first, second)))
    assert audit.pairs[0, 1000].distance == pytest.approx(expected)


def centred_distance(a, b):
    difference = a.numpy().astype(np.float64) - b.numpy().astype(np.float64)
    return float(np.linalg.norm(difference - difference.mean(axis=0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_compare_agrees_with_its_slow_twin(dtype, monkeypatch):
    monkeypatch.setattr("trainhooks.checkpoints.audit.continuity._BLOCK_ELEMENTS", 64)
    a, b = (state.to(dtype) for state in torch.randn(2, 100, 7, generator=torch.Generator().manual_seed(3)))
    x, y = (m.double().numpy() - m.double().numpy().mean(axis=0) for m in (a, b))
    pair = compare([a], [b])
    assert pair.distance == pytest.approx(np.linalg.norm(x - y), rel=1e-12)
    assert pair.cosine == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-10)


@pytest.mark.parametrize(("size", "mean"), [(1.0, 0.5), (1e-3, 100.0), (1e-22, 0.0), (1e25, 0.0)])
def test_compare_of_large_matrices_loses_no_digits_that_count(size, mean, monkeypatch):
    monkeypatch.setattr("trainhooks.checkpoints.audit.continuity._LARGE", 1)
    a, step = torch.randn(2, 3000, 40, generator=torch.Generator().manual_seed(3)) * size
    a += mean
    b = a + 0.1 * step
    x, y = (m.double().numpy() - m.double().numpy().mean(axis=0) for m in (a, b))
    x, y = x / size, y / size
    pair = compare([a], [b])
    assert pair.distance == pytest.approx(np.linalg.norm(x - y) * size, rel=1e-7)
    assert pair.cosine == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-8)
    assert compare([a], [a.clone()]).distance == 0


def test_a_first_row_far_from_the_others_takes_no_digits_of_the_distance(monkeypatch):
    monkeypatch.setattr("trainhooks.checkpoints.audit.continuity._LARGE", 1)
    a, step = torch.randn(2, 3000, 40, generator=torch.Generator().manual_seed(3))
    a[0] = 1e4
    b = a + 1e-3 * step
    assert compare([a], [b]).distance == pytest.approx(centred_distance(a, b), rel=1e-5)


def test_compare_knows_answers_and_ignores_the_mean_row():
    a = torch.randn(30, 4, generator=torch.Generator().manual_seed(4))
    assert compare([a], [a]).distance == 0
    assert compare([a], [2 * a]).cosine == pytest.approx(1)
    assert compare([a], [-a]).cosine == pytest.approx(-1)
    assert compare([a], [a + torch.arange(4)]).distance == pytest.approx(0, abs=1e-5)
    assert compare([torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 4.0])]).distance == pytest.approx(5)
    assert math.isnan(compare([a], [torch.zeros_like(a)]).cosine)
    assert compare([torch.empty(0, 4)], [torch.empty(0, 4)]).distance == 0
    assert compare([torch.tensor(1.0)], [torch.tensor(3.0)]).distance == pytest.approx(2)
    with pytest.raises(ValueError, match="equal shapes"):
        compare([a], [a[:3]])


def test_spikes_jumps_and_the_unrelated_by_hand():
    assert spikes([1, 9, 9, 1], [9, 1, 9]) == [2]
    assert spikes([1, 1, 1], [2, 2]) == []
    assert spikes([1, 1, 1], [1, 1]) == []
    assert spikes([5, 5, 5], [1, 2]) == [1]
    assert spikes([0, 0], [0]) == []
    assert spikes([2, 2], [0]) == [1]
    assert jumps(range(1000, 1006), [1, 1, 9, 1, 1]) == [2]
    assert jumps(range(1000, 1006), [1, 1, 7, 1, 1]) == []
    assert jumps((1000, 1001, 1002, 1003), [1, 100, 1]) == []
    assert unrelated((0, 1, 2, 1000), [0.9, 0.05, 0.0]) == [1]
    assert unrelated((1, 2), [math.nan]) == []


def save(folder, tensors):
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "none", "tie_word_embeddings": False}))


def test_a_folder_of_files_and_the_command(tmp_path, capsys):
    for step, state in run((0, 1, 2, 4)).items():
        save(tmp_path / f"step{step}", {KEY: state})
    assert command(["audit", str(tmp_path), "--params", KEY]) == 0
    assert "Nothing has to be left out." in capsys.readouterr().out
    (tmp_path / "step8").mkdir()
    (tmp_path / "step8" / "optimizer.pt").write_bytes(b"")
    (tmp_path / "step16").symlink_to(tmp_path / "step16")
    (tmp_path / "step32").symlink_to(tmp_path / "step4")
    assert command(["audit", str(tmp_path), "--params", KEY, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [(one["kind"], one["broken"]) for one in found["findings"]] == [
        ("no weights", [8]),
        ("unreadable", [16]),
        ("identical", [32]),
    ]
    assert command(["audit", str(tmp_path / "gone"), "--json"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def command(tokens):
    """The exit code of the command line."""
    with pytest.raises(SystemExit) as stopped:
        app(tokens)
    return stopped.value.code or 0


@pytest.mark.skipif(not SERIES.is_dir(), reason=f"no series at {SERIES}; set TRAINHOOKS_DATA")
def test_a_real_series_is_clean_and_measured_right():
    audit = audit_suite(list_suite(SERIES))
    assert audit.clean, audit.render()
    assert audit.tensors == ("embed_out.weight",)
    from safetensors.torch import load_file

    heads = [load_file(SERIES / f"step{step}" / "model.safetensors")["embed_out.weight"] for step in (0, 1000, 2000)]
    assert audit.pairs[0, 1000].distance == pytest.approx(centred_distance(heads[0], heads[1]))
    assert audit.pairs[1000, 2000].distance == pytest.approx(centred_distance(heads[1], heads[2]))
    assert audit.pairs[1000, 2000].cosine == pytest.approx(0.9606, abs=1e-3)
