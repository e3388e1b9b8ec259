"""Every recipe runs as its docstring says, keeps a whole run, and stands alone."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tracker_files import trackio_rows, wandb_rows

import trainhooks as th
from trainhooks.store import open_store

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.py"))
NEEDS = {
    "finetune_trl": "trl",
    "log_to_trackio": "trackio",
    "log_to_wandb": "wandb",
    "masked_labels": "lightning",
    "pretrain_accelerate": "accelerate",
    "pretrain_fabric": "lightning",
    "pretrain_lightning": "lightning",
    "pretrain_transformers": "transformers",
}
STEPS, BATCH, ACCUMULATE, CONTEXT = 3, 2, 2, 16
LABELS = STEPS * BATCH * CONTEXT
SMALL = ["--steps", str(STEPS), "--batch", str(BATCH), "--context", str(CONTEXT), "--vocab", "128"]
TWICE = ["--accumulate", str(ACCUMULATE)]
SETTINGS = {
    "custom_metric": SMALL,
    "finetune_trl": [*SMALL, *TWICE, "--vocab", "300", "--context", "64"],
    "log_to_trackio": SMALL,
    "log_to_wandb": SMALL,
    "masked_labels": ["--steps", str(STEPS), "--batch", str(BATCH), "--vocab", "128"],
    "pretrain_fsdp": SMALL,
}
BIT_FOR_BIT = ["pretrain_nanogpt", "pretrain_accelerate", "pretrain_fabric"]
HOSTED = ["custom_metric", "finetune_trl", "pretrain_lightning", "pretrain_transformers"]
OTHERS_WARNINGS = (
    "ignore:.*does not have many workers",
    "ignore:.*`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning",  # TRL's own default
    "ignore:Missing logger folder",
    "ignore:.*return_outputs=True.*:FutureWarning",
)
pytestmark = [pytest.mark.filterwarnings(line) for line in OTHERS_WARNINGS]


class NoRecorder:
    """Takes the recorder's place and does nothing."""

    def __init__(self, model, **settings):
        self.step = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin_step(self, labels):
        pass

    def before_update(self):
        pass

    def after_update(self, **_):
        self.step += 1

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def needed(recipe):
    if (package := NEEDS.get(recipe)) is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def run(recipe, out, *more):
    """The model that it trained."""
    needed(recipe)
    settings = SETTINGS.get(recipe, [*SMALL, *TWICE])
    loaded = runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="recipe")
    return loaded["main"]([*settings, *more, "--out", str(out)])


def check(out):
    """The store of a whole run, with a probe of every step."""
    store = open_store(out / "run.zarr")
    assert store.complete
    assert store.steps.tolist() == list(range(STEPS + 1))
    assert store.metrics()["probe.heldout_spearman"].notnull().all()
    assert len(store.token_texts) == store.output_embedding(0).shape[0]
    return store


@pytest.mark.parametrize("recipe", HOSTED)
def test_recipe_runs(recipe, tmp_path, capsys):
    model = run(recipe, tmp_path)
    store = check(tmp_path)
    assert torch.equal(torch.from_numpy(store.output_embedding(STEPS)), model.lm_head.weight.detach())
    if recipe == "finetune_trl":
        assert "tokens of answers" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", BIT_FOR_BIT)
def test_training_is_the_same_without_the_recorder(recipe, tmp_path, monkeypatch, threads):
    torch.manual_seed(99)  # not what the recipes seed
    recorded = run(recipe, tmp_path / "with")
    store = check(tmp_path / "with")
    last = torch.from_numpy(store.output_embedding(STEPS))
    assert torch.equal(last, recorded.lm_head.weight.detach())
    assert not torch.equal(last, torch.from_numpy(store.output_embedding(0)))
    assert store.label_counts(STEPS).sum() == LABELS * ACCUMULATE
    monkeypatch.setattr(th, "Recorder", NoRecorder)
    monkeypatch.setattr(th, "open_store", lambda path: store)  # what the recipe prints in the end
    bare = run(recipe, tmp_path / "without")
    for (name, ours), theirs in zip(recorded.named_parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_nanogpt_compiled_is_recorded_as_it_is_trained(tmp_path):
    torch.compiler.reset()
    model = run("pretrain_nanogpt", tmp_path, "--compile", "aot_eager")  # inductor would take a minute
    last = check(tmp_path).output_embedding(STEPS)
    assert torch.equal(torch.from_numpy(last), model._orig_mod.tokens.weight.detach())
    assert model._orig_mod.lm_head.weight is model._orig_mod.tokens.weight


def test_two_processes_by_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(RECIPES / "pretrain_fsdp.py"), *SMALL, "--out", str(tmp_path)]
    paths = os.pathsep.join([str(RECIPES.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("->") == 2  # rank 0 alone reports
    assert check(tmp_path).label_counts(STEPS).sum() == LABELS  # both ranks' shares


def test_labels_are_those_of_the_comments(tmp_path):
    run("masked_labels", tmp_path)
    store = check(tmp_path)
    seen, whole = store.label_counts(STEPS), store.token_counts
    assert 0 < seen.sum() < whole.sum()
    assert seen[0] == 0  # padding
    assert seen[store.token_texts.index("#")] <= seen.sum() / 4  # the mark begins a comment and is not of it
    assert (seen <= whole).all()


def test_wandb_has_every_record_beside_the_loops_own(tmp_path):
    run("log_to_wandb", tmp_path)
    rows = wandb_rows(tmp_path)
    recorded = [row for row in rows if "trainhooks/step" in row]
    assert [row["trainhooks/step"] for row in recorded] == list(range(STEPS + 1))
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    expected = check(tmp_path).metrics()["probe.heldout_spearman"].values
    assert [row["trainhooks/probe/heldout_spearman"] for row in recorded] == pytest.approx(expected, abs=1e-6)


def test_trackio_has_every_record_beside_the_loops_own(tmp_path):
    run("log_to_trackio", tmp_path)
    (database,) = (tmp_path / "trackio").glob("*.db")
    rows = trackio_rows(database)
    recorded = [(step, row) for step, row in rows if "trainhooks/step" in row]
    assert [step for step, _ in recorded] == list(range(STEPS + 1))
    assert [step for step, row in rows if "loss" in row] == list(range(1, STEPS + 1))
    expected = check(tmp_path).metrics()["probe.heldout_spearman"].values
    assert [row["trainhooks/probe/heldout_spearman"] for _, row in recorded] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("recipe", NAMES)
def test_a_recipe_can_be_copied(recipe):
    text = (RECIPES / f"{recipe}.py").read_text(encoding="utf-8")
    assert f"python recipes/{recipe}.py" in text.split('"""')[1], "the docstring is the command that runs it"
    assert len(text.splitlines()) <= 105
    modules = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for name in node.names}
    assert not modules & set(NAMES), "a recipe leans on no other"
    assert not any(module.startswith("trainhooks.demo") for module in modules)


FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {
    "nanogpt": "pretrain_nanogpt",
    "accelerate": "pretrain_accelerate",
    "fabric": "pretrain_fabric",
    "trl": "finetune_trl",
    "fsdp2": "pretrain_fsdp",
    "labels": "masked_labels",
}


def printed_lines(page):
    blocks = FENCE.findall((RECIPES.parent / "docs" / "howto" / f"{page}.md").read_text(encoding="utf-8"))
    return [line for language, text in blocks if language == "text" for line in text.splitlines()]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_of_a_recipe_stands_in_it(page):
    recipe = (RECIPES / f"{PAGES[page]}.py").read_text(encoding="utf-8").splitlines()
    beside = "model.model.register_forward_hook"  # what TRL's page adds
    missing = [line for line in printed_lines(page) if line not in recipe and not line.startswith(beside)]
    assert not missing
    assert len(printed_lines(page)) > 3


def test_what_the_loggers_page_shows_stands_in_the_recipes():
    recipes = [
        (RECIPES / f"log_to_{name}.py").read_text(encoding="utf-8").splitlines() for name in ("wandb", "trackio")
    ]
    assert all(any(line in recipe for recipe in recipes) for line in printed_lines("loggers"))


def test_every_recipe_is_run():
    special = {"log_to_trackio", "log_to_wandb", "masked_labels", "pretrain_fsdp"}  # have tests of their own
    assert {*BIT_FOR_BIT, *HOSTED, *special} == set(NAMES)


def test_what_recipes_share_is_the_same_in_each():
    found: dict[str, dict[str, list[str]]] = {}
    for recipe in NAMES:
        for node in ast.parse((RECIPES / f"{recipe}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == "read_words":
                found.setdefault(node.name, {}).setdefault(ast.unparse(node), []).append(recipe)
    (versions,) = found.values()
    assert len(versions) == 1, versions.values()
