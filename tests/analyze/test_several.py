"""Several suites as one job: on a cluster's workers, one after the other, stopped and taken up again."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from analyzed import OFTEN, VOCAB, same_numbers, write_suite
from safetensors.torch import load_file, save_file

from trainhooks.analyze import SuitesReport, analyze_suite, analyze_suites
from trainhooks.cli import app
from trainhooks.cli.analyze import _all_runs, analyze  # noqa: F401 - registers the command
from trainhooks.core.token_counts import TokenCounts
from trainhooks.store import open_store

STEPS = {"a": (0, 1, 2, 3), "b": (0, 20)}
SETTINGS = {"counts": OFTEN, "audit": False}


@pytest.fixture(scope="module")
def suites(tmp_path_factory):
    root = tmp_path_factory.mktemp("suites")
    return {name: write_suite(root / name, steps, seed=n) for n, (name, steps) in enumerate(STEPS.items())}


@pytest.fixture(scope="module")
def alone(suites, tmp_path_factory):
    """Each suite by itself, in one process."""
    root = tmp_path_factory.mktemp("alone")
    for name, suite in suites.items():
        analyze_suite(suite, out=root / name, workers=1, **SETTINGS)
    return {name: open_store(root / name) for name in suites}


@pytest.fixture
def threads():
    """torch's threads are put back: a worker in this process sets them."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def check(report, folder, alone):
    assert not report.failed
    for name, store in alone.items():
        same_numbers(store, open_store(folder / name), exact=True)
        assert open_store(folder / name).complete


def test_a_cluster_has_checkpoints_of_all_of_them(suites, alone, tmp_path, threads):
    distributed = pytest.importorskip("distributed", reason="a cluster needs distributed")
    seen = []
    quiet = {"dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    with distributed.LocalCluster(processes=False, n_workers=2, threads_per_worker=1, **quiet) as cluster:
        wanted = {tmp_path / name: suite for name, suite in suites.items()}
        told = {"scheduler": cluster.scheduler_address, "progress": lambda *at: seen.append(at)}
        report = analyze_suites(wanted, **told, **SETTINGS)
    check(report, tmp_path, alone)
    assert seen[-1] == (6, 6)
    assert [one.steps for one in report.reports.values()] == list(STEPS.values())


def test_stopped_it_goes_on_with_each_where_it_was(suites, alone, tmp_path, threads):
    wanted = {str(tmp_path / name): suite for name, suite in suites.items()}

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as pool:
        shared = {"executor": pool, "workers": 2}
        with pytest.raises(KeyboardInterrupt):
            analyze_suites(wanted, progress=stop, at_once=2, **shared, **SETTINGS)
        begun = [name for name in suites if (tmp_path / name).exists()]
        made = sum(len(open_store(tmp_path / name).steps) for name in begun)
        assert 2 <= made < 6
        report = analyze_suites(wanted, **shared, **SETTINGS)
    check(report, tmp_path, alone)
    assert sum(len(one.resumed) for one in report.reports.values()) == made


def test_one_that_cannot_be_analysed_is_told_and_the_others_go_on(suites, tmp_path):
    (tmp_path / "bad" / "step1").mkdir(parents=True)
    wanted = {"x": {"suite": tmp_path / "bad"}, "y": {"suite": suites["b"], "steps": "0,20"}}
    report = analyze_suites({str(tmp_path / name): one for name, one in wanted.items()}, workers=1, **SETTINGS)
    assert list(report.failed) == [tmp_path / "x"]
    assert report.reports[tmp_path / "y"].steps == (0, 20)
    assert "failed: " in report.render()
    forged = SuitesReport(failed={tmp_path / "x": "no step in 'a\nb.zarr: 3 checkpoints measured'"})
    assert forged.render().count("\n") == 1
    assert json.loads(json.dumps(report.to_dict()))["failed"]
    with pytest.raises(ValueError, match="no suites were given"):
        analyze_suites({}, **SETTINGS)
    with pytest.raises(ValueError, match="pass one of them"):
        analyze_suites({"x": "y"}, scheduler="tcp://x", executor=ThreadPoolExecutor(1), **SETTINGS)


def test_two_suites_of_one_store_are_refused(suites, tmp_path):
    for one, other in (("x", "./x"), ("x", "y/../x")):
        with pytest.raises(ValueError, match="have one store"):
            analyze_suites({f"{tmp_path}/{one}": suites["a"], f"{tmp_path}/{other}": suites["b"]}, **SETTINGS)
    assert not (tmp_path / "x").exists()


def test_states_of_two_dtypes_have_the_numbers_of_one_process(tmp_path, threads):
    suite = write_suite(tmp_path / "mixed", range(4), vocab=VOCAB, seed=3)
    for step in (1, 3):
        file = suite / f"step{step}" / "model.safetensors"
        save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    analyze_suite(suite, out=tmp_path / "alone", workers=1, params="all", **SETTINGS)
    with ThreadPoolExecutor(4) as pool:
        analyze_suite(suite, out=tmp_path / "apart", executor=pool, workers=4, params="all", **SETTINGS)
    same_numbers(open_store(tmp_path / "alone"), open_store(tmp_path / "apart"), exact=True)


def test_the_command_gives_each_run_a_store(tmp_path):
    for name in ("x/step1-seed-default", "x/step1-seed-2", "x-seed-2/step1"):
        (tmp_path / name).mkdir(parents=True)
    suites = [str(tmp_path / name) for name in ("x", "x-seed-2")]
    with pytest.raises(ValueError, match="would share a store"):
        _all_runs(suites, "all", tmp_path / "stores", None, {})
    runs = _all_runs(suites, None, tmp_path / "v1.0", None, {})
    assert [run.out for run in runs] == [tmp_path / "v1.0" / "x.zarr", tmp_path / "v1.0" / "x-seed-2.zarr"]


def test_the_command_takes_several_suites(suites, alone, tmp_path, capsys):
    TokenCounts(OFTEN).save(tmp_path / "counts.npz")
    places = [str(suites[name]) for name in ("a", "b")]
    options = ["--counts", str(tmp_path / "counts.npz"), "--workers", "1", "--no-audit"]
    app(
        ["analyze", *places, *options, "--out", str(tmp_path / "stores"), "--json", str(tmp_path / "r.json")],
        result_action="return_value",
    )
    for name in ("a", "b"):
        same_numbers(alone[name], open_store(tmp_path / "stores" / f"{name}.zarr"), exact=True)
        assert json.loads((tmp_path / f"r-{name}.json").read_text())["steps"] == list(STEPS[name])
    assert capsys.readouterr().out.count("checkpoints measured") == 2
    for out, told in ((tmp_path / "one.zarr", "give a folder"), (tmp_path / "s", "would be")):
        again = places if told == "give a folder" else [places[0], places[0]]
        with pytest.raises(SystemExit) as left:
            app(["analyze", *again, *options, "--out", str(out)])
        assert left.value.code == 1
        assert told in capsys.readouterr().err
