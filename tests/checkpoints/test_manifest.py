"""One series out of many places: manifests read, written, and refused with the row that is wrong."""

import tracemalloc

import pytest

from trainhooks.checkpoints.manifest import manifest_text, parse_manifest
from trainhooks.checkpoints.suite import AmbiguousNames, list_runs, list_suite
from trainhooks.cli import app

B = 10**9


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def rows(suite):
    return [(entry.step, entry.location) for entry in suite.entries]


def test_stages_phases_and_places_in_one_series(tmp_path):
    (tmp_path / "late").mkdir()
    table = written(
        tmp_path / "run.csv",
        "# by hand\nplace,step,tokens,stage\norg/model@step2000,2000,4B,first\norg/model@step1000,1k,2B,first\n"
        f"late,50,1B,second\nhf://org/model-late/sub/x,100,2B,second\n{tmp_path}/elsewhere,7,1B,third\n",
    )
    suite = list_suite(table)
    assert rows(suite) == [
        (1000, "org/model@step1000"),
        (2000, "org/model@step2000"),
        (2050, str(tmp_path / "late")),
        (2100, "org/model-late@main:sub/x"),
        (2107, f"{tmp_path}/elsewhere"),
    ]
    assert [entry.tokens for entry in suite.entries] == [2 * B, 4 * B, 5 * B, 6 * B, 7 * B]
    assert list_suite(table, by="tokens").steps == (2 * B, 4 * B, 5 * B, 6 * B, 7 * B)
    assert list_suite(table, stage="second").steps == (50, 100)


def test_a_manifest_beside_a_folder_or_a_repository(tmp_path):
    (tmp_path / "run" / "a").mkdir(parents=True)
    table = written(tmp_path / "t.yaml", "- {place: a, step: 5}\n- {place: b, step: 7}\n")
    assert rows(list_suite(tmp_path / "run", manifest=table))[0] == (5, str(tmp_path / "run" / "a"))
    assert rows(list_suite("org/model", manifest=table)) == [(5, "org/model@a"), (7, "org/model@b")]
    assert list_suite("org/model", manifest=table).name == "org/model"


@pytest.mark.parametrize("name", ["out.csv", "out.yaml"])
def test_what_is_written_is_read_as_the_same_series(tmp_path, name):
    for one in ("stage1-step10-tokens1B", "stage1-step20-tokens2B", "stage2-step5-tokens1B"):
        (tmp_path / "run" / one).mkdir(parents=True)
    suite = list_suite(tmp_path / "run")
    table = written(tmp_path / name, manifest_text(suite.entries, name=name))
    again = list_suite(table)
    assert rows(again) == rows(suite)
    assert [entry.tokens for entry in again.entries] == [entry.tokens for entry in suite.entries] == [B, 2 * B, 3 * B]


def test_the_official_tables_of_olmo(tmp_path):
    table = written(
        tmp_path / "OLMo-1B.csv",
        "Step,Checkpoint Directory\n2000,https://olmo-checkpoints.org/x/step2000-unsharded/\n"
        "1000,https://olmo-checkpoints.org/y/step1000-unsharded/\n",
    )
    assert rows(list_suite(table))[0] == (1000, "https://olmo-checkpoints.org/y/step1000-unsharded/")
    several = written(
        tmp_path / "stage2.csv", "Ingredient,Step,Checkpoint Directory\n1,10,https://h/a\n2,10,https://h/b\n"
    )
    with pytest.raises(AmbiguousNames, match="--stage ingredient1"):
        list_suite(several)
    assert rows(list_suite(several, stage="ingredient2")) == [(10, "https://h/b")]


def test_seeds_in_a_manifest_are_runs(tmp_path):
    table = written(tmp_path / "m.csv", "place,step,seed\na/x@r1,1,0\na/x@r2,1,1\n")
    with pytest.raises(AmbiguousNames, match="--seed 0, --seed 1"):
        list_suite(table)
    assert [run.entries[0].location for run in list_runs(table, seed="all")] == ["a/x@r1", "a/x@r2"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no rows"),
        ("place,step\n", "no rows"),
        ("step,tokens\n1,2\n", "no column `place`"),
        ("place,step\na,1\nb\n", "row 2: 1 cells under 2"),
        ("place,step\na,-1\n", r"row 1, step: '-1' is no whole number"),
        ("place,step\na,1.5\n", "is no whole number"),
        ("place,step\n,1\n", "row 1: it has no place"),
        ("place,step\nfinal,\n", "row 1: neither step nor tokens"),
        ('place,step\n"a,1\n', "is no CSV"),
        ("place,step,iteration\na,1,100\n", "two columns for step"),
        ("place,step\na,99999999999T\n", "is no whole number"),
    ],
)
def test_rows_that_are_wrong_are_named(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        list_suite(written(tmp_path / "m.csv", text))


@pytest.mark.parametrize(
    "text", ["a: [", "a: 1", "- 1", "- {place: {a: 1}}", "!!python/object:os.system {}", "[" * 5000]
)
def test_yaml_that_is_no_table(tmp_path, text):
    with pytest.raises(ValueError, match=r"YAML|list of checkpoints|every value"):
        list_suite(written(tmp_path / "m.yaml", text))


def test_the_command_writes_what_was_read_even_where_it_must_ask(tmp_path, capsys):
    for one in ("step10", "ext5", "decay7"):
        (tmp_path / "run" / one).mkdir(parents=True)
    with pytest.raises(SystemExit) as left:
        app(["audit", str(tmp_path / "run"), "--manifest-out", str(tmp_path / "m.csv")])
    assert left.value.code == 1
    assert "--stage" in capsys.readouterr().err
    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert lines[0] == "place,step,stage"
    assert sorted(lines[1:]) == [
        f"{tmp_path}/run/decay7,7,decay",
        f"{tmp_path}/run/ext5,5,ext",
        f"{tmp_path}/run/step10,10,",
    ]
    assert list_suite(tmp_path / "m.csv").steps == (7, 12, 22)


def test_a_step_in_yaml_is_read_as_it_is_written(tmp_path):
    text = "- {place: a, step: 0001000, seed: 2024-01-15}\n- {place: b, step: 0000900, seed: 2024-01-15, stage: ~}\n"
    suite = list_suite(written(tmp_path / "m.yaml", text))
    assert suite.steps == (900, 1000)
    assert suite.entries[0].seed == "2024-01-15"


def test_rows_without_a_stage_beside_a_first_stage(tmp_path):
    table = written(tmp_path / "m.csv", "place,step,stage\na,1,\nb,2,\nc,10,stage1\nd,20,stage1\n")
    assert [(one.step, one.stage) for one in list_suite(table).entries] == [
        (1, ""), (2, ""), (10, "stage1"), (20, "stage1"),
    ]  # fmt: skip


HOSTILE = {
    "lines.csv": "place\n" + "a\n" * 3_000_000,
    "returns.csv": "place\r" + "a\r" * 3_000_000,
    "cells.csv": "place" + "," * 3_000_000,
    "tabs.tsv": "place" + "\t" * 3_000_000,
    "number.csv": "place,step\na," + "9" * 100_000,
    "exponent.csv": "place,step\na,1e999",
    "negative.csv": "place,step\na,-1",
    "dashes.yaml": "- " * 400_000,
    "deep.yaml": "[" * 400_000,
    "long.yaml": "- place: x\n" * 300_000,
    "shared.yaml": "a: &a [x,x]\n" + "".join(f"b{i}: &b{i} [*a,*a,*a]\n" for i in range(300)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_that_is_made_to_harm_is_one_error(name):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=name):
            parse_manifest(HOSTILE[name], name=name, placed=str)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def test_rows_of_steps_beside_rows_of_tokens_are_told_what_they_need(tmp_path):
    table = written(tmp_path / "m.csv", "place,step,tokens\na,1,\nb,,2B\n")
    with pytest.raises(AmbiguousNames, match="Give all rows a step, or all of them tokens"):
        list_suite(table)


def test_counts_of_tokens_in_a_manifest_are_no_sizes(tmp_path):
    rows = "place,tokens\n100B,100B\n250B,250B\n500B,500B\n"
    (tmp_path / "run.csv").write_text(rows)
    assert list_suite(tmp_path, manifest=tmp_path / "run.csv").steps == (100 * B, 250 * B, 500 * B)


def test_a_comment_is_no_nesting():
    text = "# - - - - - - - - -\n#: : : : : : :\n- {place: a, step: 1}\n- {place: b, step: 2}\n"
    assert len(parse_manifest(text, name="runs.yaml", placed=str).rows) == 2
