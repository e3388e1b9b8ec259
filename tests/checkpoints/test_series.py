"""Which names are one series, and what is asked where they could be several."""

import re

import pytest

from trainhooks.checkpoints.suite import AmbiguousNames, list_runs, list_suite

B = 10**9


def made(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def read(suite):
    return [(entry.step, entry.name) for entry in suite.entries]


def test_stages_that_count_anew_stand_one_after_the_other(tmp_path):
    names = [
        "stage1-step1000",
        "stage1-step3000",
        "stage2-step0",
        "stage2-step1000",
        "stage2-step500",
        "stage3-step100",
    ]
    suite = list_suite(made(tmp_path, *names, "main", "fp32"))
    assert read(suite) == [
        (1000, "stage1-step1000"),
        (3000, "stage1-step3000"),
        (3500, "stage2-step500"),
        (4000, "stage2-step1000"),
        (4100, "stage3-step100"),
    ]
    assert [entry.own_step for entry in suite.entries] == [1000, 3000, 500, 1000, 100]
    assert [entry.stage for entry in suite.entries] == ["stage1"] * 2 + ["stage2"] * 2 + ["stage3"]
    assert suite.unread == ("fp32", "main", "stage2-step0")
    assert "3 names were not read as steps: fp32, main, stage2-step0" in suite.told
    assert "stage stage2 counts anew: its step n stands at 3000 + n, after the last before it." in suite.told


def test_stages_that_go_on_counting_keep_their_steps(tmp_path):
    names = ["stage1-step-40", "stage2-step-60", "lc-4k-to-32k-step-4", "lc-32k-to-64k-step-3", "lc-32k-to-64k-step-8"]
    suite = list_suite(made(tmp_path, *names))
    assert [entry.step for entry in suite.entries] == [40, 60, 64, 67, 72]
    assert [entry.stage for entry in suite.entries][2:] == ["lc-4k-to-32k", "lc-32k-to-64k", "lc-32k-to-64k"]


def test_one_extension_comes_last(tmp_path):
    suite = list_suite(made(tmp_path, "step0005000", "step0010000", "extension_step0000250"))
    assert read(suite)[-1] == (10250, "extension_step0000250")


def test_phases_in_an_order_that_is_not_told_are_asked_for(tmp_path):
    made(tmp_path, "step1000", "step2000", "ext500", "ext1000", "decay100")
    with pytest.raises(AmbiguousNames, match=r"base: step1000, step2000 \(2\).*--stage ext.*--stage base,|--manifest"):
        list_suite(tmp_path)
    suite = list_suite(tmp_path, stage="base,ext,decay")
    assert suite.steps == (1000, 2000, 2500, 3000, 3100)
    alone = list_suite(tmp_path, stage="ext")
    assert alone.steps == (500, 1000)
    assert len(alone.unread) == 3
    with pytest.raises(ValueError, match=r"no stage 'late'; it has .*base"):
        list_suite(tmp_path, stage="late")


def test_branches_beside_each_other_are_asked_for(tmp_path):
    made(tmp_path, "stage1-step100-tokens1B", *(f"stage2-ingredient{k}-step10-tokens1B" for k in (1, 2)))
    with pytest.raises(AmbiguousNames, match="stage2-ingredient2"):
        list_suite(tmp_path)
    suite = list_suite(tmp_path, stage=["stage1", "stage2-ingredient2"])
    assert suite.steps == (100, 110)
    assert [entry.tokens for entry in suite.entries] == [B, 2 * B]


@pytest.mark.parametrize("branch", [(8100, 8200, 8300), (6000, 7000, 8000, 9000), (9000,), (5000, 5500)])
def test_a_branch_that_kept_the_trunks_count_is_asked_for(tmp_path, branch):
    trunk = range(1000, 11000, 1000)
    made(tmp_path, *(f"step{n}" for n in trunk), *(f"decay-step{n}" for n in branch))
    with pytest.raises(AmbiguousNames, match=r"branch off base before its end.*--stage base,decay.*--stage decay"):
        list_suite(tmp_path)
    suite = list_suite(tmp_path, stage="base,decay")
    before = [n for n in trunk if n < branch[0]]
    assert suite.steps == (*before, *branch)
    assert [entry.stage for entry in suite.entries] == [""] * len(before) + ["decay"] * len(branch)
    left = [n for n in trunk if n >= branch[0]]
    assert set(suite.unread) == {f"step{n}" for n in left}
    assert f"{len(left)} checkpoints of base from there on are left out" in suite.told[0]
    assert list_suite(tmp_path, stage="decay").steps == branch


def test_a_stage_that_counts_anew_is_no_branch_however_sparse_it_is(tmp_path):
    made(tmp_path, *(f"step{n}" for n in (9000, 10000, 11000)), "extension_step0001500")
    assert list_suite(tmp_path).steps == (9000, 10000, 11000, 12500)
    late = made(tmp_path / "late", "stage1-step1000", "stage1-step2000", "stage1-step40000", "stage2-step11931")
    assert list_suite(late).steps == (1000, 2000, 40000, 51931)


@pytest.mark.parametrize("names", [("160m", "410m", "1b"), ("1B", "7B", "13B"), ("0.5B.pt", "1.5B.pt", "3B.pt")])
def test_bare_numbers_that_may_be_models_sizes_are_asked_for(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(AmbiguousNames, match=r"models of several sizes.*--by tokens"):
        list_suite(tmp_path)
    assert len(list_suite(tmp_path, by="tokens").steps) == 3
    assert list_suite(made(tmp_path / "t", "10B", "20B", "100B", "1T")).steps == (10 * B, 20 * B, 100 * B, 1000 * B)


def test_where_one_number_alone_differs_the_expression_for_it_is_offered(tmp_path):
    made(tmp_path, *(f"toy_2L512W_{n:06d}" for n in (0, 512, 1024)))
    with pytest.raises(ValueError, match="no step can be read") as asked:
        list_suite(tmp_path)
    offered = re.search(r"if it is the step, '([^']+)'", str(asked.value))[1]
    assert list_suite(tmp_path, revision_pattern=offered).steps == (0, 512, 1024)


def test_names_without_the_first_stages_prefix_are_of_it(tmp_path):
    made(tmp_path, "step150-tokens1B", "stage1-step1000-tokens5B", "stage2-step10-tokens1B")
    suite = list_suite(tmp_path)
    assert suite.steps == (150, 1000, 1010)
    assert "1 names without a stage are taken for stage1" in suite.told[0]


def test_several_seeds_are_never_one_series(tmp_path):
    made(tmp_path, *(f"step{n}-seed-{seed}" for n in (10, 20) for seed in ("default", "large-aux-2")))
    with pytest.raises(AmbiguousNames, match=r"default: .*\(2\).*--seed default.*--seed large-aux-2"):
        list_suite(tmp_path)
    suite = list_suite(tmp_path, seed="large-aux-2")
    assert suite.steps == (10, 20)
    assert {entry.seed for entry in suite.entries} == {"large-aux-2"}
    runs = list_runs(tmp_path, seed="all")
    assert [run.entries[0].seed for run in runs] == ["default", "large-aux-2"]
    with pytest.raises(ValueError, match="no seed '7'"):
        list_suite(tmp_path, seed=7)


def test_tokens_as_the_axis(tmp_path):
    made(tmp_path, "step10-tokens210B", "step20-tokens15T")
    suite = list_suite(tmp_path, by="tokens")
    assert (suite.axis, suite.steps) == ("tokens", (210 * B, 15_000 * B))
    assert [entry.own_step for entry in suite.entries] == [10, 20]
    assert list_suite(tmp_path).steps == (10, 20)
    with pytest.raises(ValueError, match="cannot go by tokens: 1 names tell none"):
        list_suite(made(tmp_path / "some", "step1", "step2-tokens3B"), by="tokens")
    with pytest.raises(ValueError, match="step or tokens, not by 'epochs'"):
        list_suite(tmp_path, by="epochs")


def test_names_of_tokens_alone_are_ordered_by_them(tmp_path):
    suite = list_suite(made(tmp_path, "train_00220B", "train_02T", "train_00440B"))
    assert (suite.axis, suite.steps) == ("tokens", (220 * B, 440 * B, 2000 * B))


def test_an_expression_that_cuts_off_units_is_refused(tmp_path):
    made(tmp_path, "step10-tokens210B", "step20-tokens15T")
    with pytest.raises(ValueError, match=r"leaves out the units, which differ: .*15T"):
        list_suite(tmp_path, revision_pattern=r"step\d+-tokens(\d+)[BT]")
    assert list_suite(tmp_path, revision_pattern=r"step\d+-tokens(\d+[BT])").steps == (210 * B, 15_000 * B)


def test_the_options_that_are_offered_work(tmp_path):
    made(tmp_path, "step1", "step20", "checkpoint-7")
    with pytest.raises(AmbiguousNames) as asked:
        list_suite(tmp_path)
    offered = re.findall(r"--revision-pattern '([^']+)'", str(asked.value))
    assert [list_suite(tmp_path, revision_pattern=one).steps for one in offered] == [(7,), (1, 20)]


def test_a_file_saved_again_counts_once(tmp_path):
    names = ["epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt", "epoch=1-step=20-v1.ckpt"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    suite = list_suite(tmp_path)
    assert read(suite) == [(10, names[0]), (20, names[2])]
    assert suite.unread == (names[1],)
    (tmp_path / "epoch=0-step=10-v1.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="two checkpoints of one step"):
        list_suite(tmp_path)


def test_names_that_differ_in_a_run_or_a_version_are_several_kinds(tmp_path):
    with pytest.raises(AmbiguousNames, match="mixes names of several patterns"):
        list_suite(made(tmp_path, "run1-step100", "run2-step200", "run2-step300"))


def test_names_without_a_stage_can_be_picked_beside_a_first_stage(tmp_path):
    suite = list_suite(made(tmp_path, "step1", "step2", "stage1-step10"), stage="base")
    assert read(suite) == [(1, "step1"), (2, "step2")]


def test_all_seeds_of_a_known_suite_are_all(tmp_path):
    run = made(tmp_path, "step1-seed-default", "step1-seed-large-aux-2")
    runs = list_runs(run, seed="all", preset="datadecide")
    assert [one.entries[0].seed for one in runs] == ["default", "large-aux-2"]
    assert list_suite(run, preset="datadecide").entries[0].seed == "default"


def test_a_branch_behind_a_stage_that_counted_anew_is_asked_for(tmp_path):
    steps, branch = range(0, 1001, 100), ("decay-step800", "decay-step900")
    made(tmp_path, *(f"{stage}-step{n}" for stage in ("stage1", "stage2") for n in steps), *branch)
    with pytest.raises(AmbiguousNames, match=r"branch off stage2 before its end.*--stage stage2,decay"):
        list_suite(tmp_path, stage="stage1,stage2,decay")
    assert list_suite(tmp_path, stage="stage2,decay").steps == (*range(0, 701, 100), 800, 900)


def test_what_an_expression_calls_tokens_are_no_sizes(tmp_path):
    made(tmp_path, "100B", "250B", "500B")
    with pytest.raises(AmbiguousNames, match="models of several sizes"):
        list_suite(tmp_path)
    assert list_suite(tmp_path, revision_pattern=r"(?P<tokens>\d+B)").steps == (100 * B, 250 * B, 500 * B)
