import re
from contextlib import closing

import numpy as np
import pytest

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.steps import PYTHIA_GRID, missing_steps, parse_steps
from trainhooks.checkpoints.suite import list_suite, step_of
from trainhooks.core.formatting import shortened
from trainhooks.core.schedule import LogSpaced
from trainhooks.store import SNAPSHOT, Layout, StoreWriter


def folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def files(root, *names):
    root.mkdir(exist_ok=True)
    for name in names:
        (root / name).write_bytes(b"")
    return root


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("step0", "step10", "step9"), (0, 9, 10)),
        (("checkpoint-500", "checkpoint-1000", "runs"), (500, 1000)),
        (("global_step1", "global_step20"), (1, 20)),
        (("iter_0000100", "iter_0000020"), (20, 100)),
        (("step_000001", "step_000010"), (1, 10)),
    ],
)
def test_a_folder_of_folders_by_number(tmp_path, names, steps):
    suite = list_suite(folders(tmp_path, *names))
    assert suite.steps == steps
    assert suite.kind == "folder"
    assert all(step_of(entry.location.rsplit("/", 1)[1])[0] == entry.step for entry in suite.entries)


def test_files_of_states_and_lightning_checkpoints(tmp_path):
    states = files(tmp_path / "states", "step1.pt", "step20.pt", "log.txt", "step3.json")
    assert list_suite(states).steps == (1, 20)
    lightning = files(tmp_path / "lit", "epoch=0-step=100.ckpt", "epoch=1-step=20.ckpt", "last.ckpt")
    assert list_suite(lightning).steps == (20, 100)
    assert step_of("epoch=0-step=7-val_loss=0.5.ckpt") == (7, "step=N")
    assert step_of("model.safetensors") is None


def test_names_of_ones_own(tmp_path):
    folders(tmp_path, "stage1-step1000-tokens5B", "stage1-step200-tokens1B", "stage2-step7-tokens1B")
    pattern = r"stage1-step(\d+)-tokens\d+B"
    assert list_suite(tmp_path, revision_pattern=pattern).steps == (200, 1000)
    named = r"stage(\d)-step(?P<step>\d+)-tokens\d+B"
    assert list_suite(tmp_path, revision_pattern=named).steps == (7, 200, 1000)
    with pytest.raises(ValueError, match="needs one"):
        list_suite(tmp_path, revision_pattern=r"step\d+")
    with pytest.raises(ValueError, match="no regular expression"):
        list_suite(tmp_path, revision_pattern="(")
    with pytest.raises(ValueError, match="is no step"):
        list_suite(tmp_path, revision_pattern=r"(.*)")


def test_mixed_patterns_and_double_steps_are_shown(tmp_path):
    with pytest.raises(ValueError, match=r"several patterns.*checkpoint-7 \(1\).*step1, step2 \(2\)"):
        list_suite(folders(tmp_path / "a", "step1", "step2", "checkpoint-7"))
    with pytest.raises(ValueError, match=r"two checkpoints of one step: step 1: .*step01.*step1"):
        list_suite(folders(tmp_path / "b", "step1", "step01"))
    with pytest.raises(ValueError, match="it is empty"):
        list_suite(folders(tmp_path, "c") / "c")
    with pytest.raises(ValueError, match=r"found model\.safetensors"):
        list_suite(files(tmp_path / "d", "model.safetensors"))
    with pytest.raises(ValueError, match="no folder, no text file and no hub repository"):
        list_suite(tmp_path / "nothing" / "there" / "at" / "all")


def test_links_that_loop_or_lead_nowhere_stay_listed(tmp_path):
    folders(tmp_path, "step1")
    (tmp_path / "step2").symlink_to(tmp_path)
    (tmp_path / "step3").symlink_to(tmp_path / "step3")
    (tmp_path / "step4").symlink_to(tmp_path / "gone")
    assert list_suite(tmp_path).steps == (1, 2, 3, 4)


def test_a_list_of_places(tmp_path):
    files(folders(tmp_path, "a/step100", "b") / "a/step100", "model.safetensors")
    (tmp_path / "places.txt").write_text(
        "# both\na/step100/model.safetensors\n\nowner/name@step7\nb/step20.pt # late\n"
    )
    suite = list_suite(tmp_path / "places.txt")
    assert suite.kind == "list"
    assert [(entry.step, entry.location) for entry in suite.entries] == [
        (7, "owner/name@step7"),
        (20, str(tmp_path / "b/step20.pt")),
        (100, str(tmp_path / "a/step100/model.safetensors")),
    ]
    assert list_suite([tmp_path / "a/step100", "x/step3"]).steps == (3, 100)
    with pytest.raises(ValueError, match="found other"):
        list_suite(["x/step3", "x/other"])
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no text file"):
        list_suite(tmp_path / "bytes")


def test_a_hub_repository_by_branches_and_tags(monkeypatch):
    names = ["main", "step10", "step2", "step30", "v1"]
    monkeypatch.setattr("trainhooks.checkpoints.suite.list_hub_revisions", lambda repository: names)
    suite = list_suite("owner/model.x")
    assert (suite.kind, suite.name, suite.steps) == ("hub", "owner/model.x", (2, 10, 30))
    assert suite.entries[0].location == "owner/model.x@step2"
    names[:] = ["main"]
    with pytest.raises(ValueError, match=r"found main.*--revision-pattern"):
        list_suite("owner/model.x")


def test_a_hub_that_does_not_answer_is_one_line():
    # the tests run with HF_HUB_OFFLINE set
    with pytest.raises(ValueError, match=r"owner/model is no local path, and .* cannot be listed"):
        list_suite("owner/model")


def test_a_store_is_a_suite_of_its_snapshots(tmp_path):
    layout = Layout(variables=(), groups=("all",), sketch_size=2, vocab=5, dim=3, snapshots=True)
    path = str(tmp_path / "run.zarr")
    matrices = {step: np.random.default_rng(step).standard_normal((5, 3)).astype(np.float32) for step in (0, 4)}
    with closing(StoreWriter(path, layout)) as writer:
        for step in (0, 2, 4):
            writer.append(step, {}, sketch=np.zeros((1, 2), np.float32), snapshot=matrices.get(step))
    suite = list_suite(path)
    assert (suite.kind, suite.steps) == ("store", (0, 4))
    checkpoint = suite.open(suite.entries[1])
    assert checkpoint.tensors[SNAPSHOT].shape == (5, 3)
    # the store keeps bfloat16's precision by default
    np.testing.assert_allclose(checkpoint.read(SNAPSHOT).numpy(), matrices[4], rtol=2**-8)
    assert checkpoint.identity(SNAPSHOT) != suite.open(suite.entries[0]).identity(SNAPSHOT)
    with pytest.raises(CheckpointError, match="nothing else"):
        checkpoint.read("lm_head.weight")


def test_a_selection_keeps_what_is_missing(tmp_path):
    folders(tmp_path, *(f"step{step}" for step in range(0, 60, 10)))
    suite = list_suite(tmp_path, steps="0:20:5")
    assert (suite.steps, suite.wanted) == ((0, 10, 20), (0, 5, 10, 15, 20))
    assert list_suite(tmp_path, steps=[50, 0]).steps == (0, 50)
    with pytest.raises(ValueError, match=r"none of the steps asked for \(3\); it has 0, 10"):
        list_suite(tmp_path, steps="3")


def test_the_syntax_of_steps():
    assert parse_steps("0,1,2,4", available=[]) == (0, 1, 2, 4)
    assert parse_steps("4, 1:3 ,2", available=[]) == (1, 2, 3, 4)
    assert parse_steps("0:143000:1000", available=[])[-1] == 143000
    assert parse_steps("pythia", available=[]) == PYTHIA_GRID
    assert len(PYTHIA_GRID) == 154
    assert tuple(LogSpaced().steps(143000)) == PYTHIA_GRID
    assert parse_steps("log", available=[0, 3, 4, 5, 9, 1000]) == (0, 3, 4, 9, 1000)
    assert parse_steps("log", available=[0]) == (0,)
    assert parse_steps("log", available=PYTHIA_GRID)[:12] == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)


@pytest.mark.parametrize("text", ["", ",", "a", "1:2:3:4", "5:1", "1:9:0", "-1", "1.5", "0:999999999999", "1:", "١"])
def test_steps_that_are_none(text):
    with pytest.raises(ValueError, match=r"step|range"):
        parse_steps(text, available=[1])


def test_what_a_regular_series_lacks():
    grid = list(PYTHIA_GRID)
    for gone in ([8], [3000], [2000], [8, 64, 77000, 78000]):
        assert missing_steps([step for step in grid if step not in gone]) == tuple(gone)
    assert missing_steps(range(0, 5000, 1000)) == ()
    assert missing_steps([0, 1000, 2000, 3000, 5000]) == (4000,)


@pytest.mark.parametrize(
    "steps",
    [[], [5], [0, 7], [0, 1000, 2000], list(PYTHIA_GRID), [*range(11), *range(20, 100, 10)], [3, 14, 15, 92, 653]],
)
def test_series_that_lack_nothing(steps):
    assert missing_steps(steps) == ()


def test_long_lists_are_shortened():
    assert shortened([1, 2]) == "1, 2"
    assert re.fullmatch(r"0, 1, 2, 3, 4, 5 \.\.\. 19 \(20\)", shortened(range(20)))


def test_a_folder_of_texts_is_not_called_empty(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("text")
    with pytest.raises(
        ValueError, match=r"holds 4 files \(0.txt, 1.txt, 2.txt ...\), and none is a folder or a file of"
    ):
        list_suite(tmp_path)
