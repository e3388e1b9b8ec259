import inspect
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import trainhooks.cli.count as command
from trainhooks.cli import app
from trainhooks.core.token_counts import TokenCounts
from trainhooks.corpora.presets import PYTHIA_TOKENS, PYTHIA_VOCAB

DATA = Path(os.environ.get("TRAINHOOKS_DATA", Path(__file__).parents[3] / "shared" / "data"))
PYTHIA = DATA / "counts" / "pythia-unigrams.npy"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs `trainhooks count ...`; exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            app(["count", *map(str, arguments)])
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def ids(tmp_path: Path) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, 40, size=(30, 9)).astype(np.uint16)
    ids.tofile(tmp_path / "ids.bin")
    np.save(tmp_path / "ids.npy", ids)
    return ids


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2, "three": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<pad>"])
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def counted(ids: np.ndarray, *, vocab: int = 40) -> list[int]:
    slow = Counter(ids.reshape(-1).tolist())
    return [slow[token] for token in range(vocab)]


class TestCounting:
    def test_ids(self, run, ids, tmp_path) -> None:
        code, out, err = run(tmp_path / "ids.bin", "--out", tmp_path / "c.npz", "--vocab-size", 40)
        assert code == 0, err
        found = TokenCounts.load(tmp_path / "c.npz")
        assert found.counts.tolist() == counted(ids)
        assert found.tokens_read == 270
        assert "270 counted of 270 read" in out
        assert f"written to {tmp_path / 'c.npz'}" in out
        assert not (tmp_path / "c.npz.partial").exists()

    def test_rules(self, run, ids, tmp_path) -> None:
        for name, flags, kept in (
            ("w", ("--window", 7), np.delete(ids.reshape(-1), np.s_[::7])),
            ("s", ("--skip-first",), ids[:, 1:]),
            ("l", ("--leave-out", 3, 5), ids[(ids != 3) & (ids != 5)]),
        ):
            code, out, err = run(
                tmp_path / "ids.npy", "--out", tmp_path / f"{name}.npz", "--vocab-size", 40, "--json", *flags
            )
            assert code == 0, err
            found = TokenCounts.load(tmp_path / f"{name}.npz")
            assert found.counts.tolist() == counted(kept)
            assert found.rule == json.loads(out)["rule"]
            assert json.loads(out)["tokens_read"] == 270

    def test_another_dtype(self, run, ids, tmp_path) -> None:
        ids.astype(np.int32).tofile(tmp_path / "wide.bin")
        code, _, err = run(
            tmp_path / "wide.bin", "--out", tmp_path / "c.npy", "--vocab-size", 40, "--dtype", "int32", "--workers", 1
        )
        assert code == 0, err
        assert TokenCounts.load(tmp_path / "c.npy").counts.tolist() == counted(ids)

    def test_text_takes_the_vocabulary_from_its_tokenizer(self, run, tokenizer, tmp_path) -> None:
        (tmp_path / "words.txt").write_text("one two two three nine\n")
        code, out, err = run(tmp_path / "words.txt", "--out", tmp_path / "c.npz", "--tokenizer", tokenizer, "--json")
        assert code == 0, err
        found = TokenCounts.load(tmp_path / "c.npz")
        assert found.counts.tolist() == [1, 1, 2, 1, 0]
        assert (json.loads(out)["documents"], json.loads(out)["skipped"]) == (1, 0)
        code, out, err = run("--describe", tmp_path / "c.npz", "--tokenizer", tokenizer, "--json")
        assert (code, json.loads(out)["warnings"]) == (0, []), err

    def test_interrupted_counting_goes_on(self, run, ids, tmp_path, monkeypatch) -> None:
        arguments = (tmp_path / "ids.bin", tmp_path / "ids.npy", "--out", tmp_path / "c.npz", "--vocab-size", 40)
        from trainhooks.corpora import counting

        tally_pieces = counting.tally_pieces
        monkeypatch.setattr(counting, "_TASK_PIECES", 1)
        calls: list[int] = []

        def interrupted(*args):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return tally_pieces(*args)

        monkeypatch.setattr(counting, "tally_pieces", interrupted)
        code, _, err = run(*arguments)
        assert (code, "same command again" in err) == (130, True)
        assert (tmp_path / "c.npz.partial").exists()
        assert not (tmp_path / "c.npz").exists()
        code, out, err = run(*arguments)
        assert code == 0, err
        assert "going on from" in err
        assert "1 of 2 pieces were done before" in out
        assert TokenCounts.load(tmp_path / "c.npz").counts.tolist() == [2 * c for c in counted(ids)]
        assert len(calls) == 3

    def test_workers_of_a_scheduler(self, run, ids, tmp_path, monkeypatch) -> None:
        from concurrent.futures import ThreadPoolExecutor

        import distributed

        addresses = []

        def client(address: str) -> ThreadPoolExecutor:
            addresses.append(address)
            return ThreadPoolExecutor(2)

        monkeypatch.setattr(distributed, "Client", client)
        code, _, err = run(
            tmp_path / "ids.bin", "--out", tmp_path / "c.npz", "--vocab-size", 40, "--scheduler", "tcp://host:1"
        )
        assert (code, addresses) == (0, ["tcp://host:1"]), err
        assert TokenCounts.load(tmp_path / "c.npz").counts.tolist() == counted(ids)


@pytest.fixture
def folder(ids, tokenizer, tmp_path, monkeypatch) -> None:
    """All the files, where the commands run."""
    monkeypatch.chdir(tmp_path)


class TestMistakes:
    def test_counts_are_not_overwritten_by_accident(self, run, ids, tmp_path) -> None:
        np.save(tmp_path / "c.npy", np.array([7]))
        arguments = (tmp_path / "ids.bin", "--out", tmp_path / "c.npy", "--vocab-size", 40)
        code, _, err = run(*arguments)
        assert (code, "pass --overwrite" in err) == (1, True)
        assert TokenCounts.load(tmp_path / "c.npy").counts.tolist() == [7]
        assert run(*arguments, "--overwrite")[0] == 0
        assert TokenCounts.load(tmp_path / "c.npy").counts.tolist() == counted(ids)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (("ids.bin", "--out", "c.npz"), "pass --tokenizer tokenizer.json, or --vocab-size V"),
            (("ids.bin", "--out", "c.npz", "--vocab-size", "9"), "ids.bin"),
            (("ids.bin", "--out", "c.txt", "--vocab-size", "40"), "ends in .npz"),
            (("ids.bin", "--out", "none/c.npz", "--vocab-size", "40"), "the folder none"),
            (("ids.bin", "--out", "c.npz", "--tokenizer", "tokenizer.json", "--vocab-size", "4"), "has 5 ids"),
            (("ids.bin", "--vocab-size", "40"), "--out COUNTS.npz"),
            (("--out", "c.npz"), "name the files"),
            (("ids.bin", "--describe", "c.npz"), "give it alone"),
            (("ids.bin", "--out", "c.npz", "--against", "d.npz"), "--against needs --describe"),
            (("ids.bin", "ids.npy", "--out", "c.npz", "--preset", "pythia"), "checks one file; got 2"),
            (("--describe", "ids.npy"), "holds no token counts"),
        ],
    )
    def test_a_mistake_is_one_line(self, run, folder, flags, message) -> None:
        code, out, err = run(*flags)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert message in err


class TestDescribing:
    def test_for_people_and_for_programs(self, run, tmp_path) -> None:
        TokenCounts(np.arange(200) ** 2, rule="one").save(tmp_path / "a.npz")
        TokenCounts(np.arange(200)[::-1] ** 2, rule="other").save(tmp_path / "b.npz")
        code, out, err = run("--describe", tmp_path / "a.npz", "--against", tmp_path / "b.npz")
        assert code == 0, err
        for words in (
            "zero counts   1\n",
            "Zipf exponent",
            "have 90% of the tokens",
            "KL",
            "warning: the two were counted",
        ):
            assert words in out
        code, out, err = run("--describe", tmp_path / "a.npz", "--against", tmp_path / "b.npz", "--json")
        found = json.loads(out)
        assert found["kl"]["to_other"] == pytest.approx(found["kl"]["from_other"])
        assert found["kl"]["smoothing"] == 0.5
        assert len(found["warnings"]) == 1


class TestPreset:
    def test_a_whole_run_passes(self, run, tmp_path) -> None:
        array = np.zeros(PYTHIA_VOCAB, dtype=np.int64)
        array[5] = PYTHIA_TOKENS
        np.save(tmp_path / "run.npy", array)
        code, out, err = run("--preset", "pythia", tmp_path / "run.npy", "--out", tmp_path / "c.npz")
        assert code == 0, err
        assert "300,039,168,000 = 143000 x 1024 x 2049" in out
        assert "never a label" in out
        assert "never a label" in TokenCounts.load(tmp_path / "c.npz").rule

    @pytest.mark.parametrize(
        ("array", "messages"),
        [
            (np.r_[PYTHIA_TOKENS - 7, np.zeros(PYTHIA_VOCAB - 1, np.int64)], ("300039167993", "300039168000", "-7")),
            (np.array([PYTHIA_TOKENS]), ("has 1 entries", "50277")),
            (np.r_[float(PYTHIA_TOKENS), np.full(PYTHIA_VOCAB - 1, 6e-312)], ("50276 of 50277", "6e-312")),
        ],
    )
    def test_others_do_not(self, run, tmp_path, array, messages) -> None:
        np.save(tmp_path / "run.npy", array)
        code, _, err = run("--preset", "pythia", tmp_path / "run.npy", "--out", tmp_path / "c.npz")
        assert code == 1
        assert all(message in err for message in messages), err
        assert not (tmp_path / "c.npz").exists()

    @pytest.mark.skipif(not PYTHIA.exists(), reason=f"no counts in {DATA}")
    def test_the_published_array(self, run, tmp_path) -> None:
        code, out, err = run("--preset", "pythia", PYTHIA, "--out", tmp_path / "c.npz", "--json")
        assert (code, json.loads(out)["tokens"]) == (0, PYTHIA_TOKENS), err


def test_every_parameter_is_documented() -> None:
    text = inspect.getdoc(command.count)
    assert text
    for parameter in inspect.signature(command.count).parameters:
        assert f"\n{parameter}\n    " in text, parameter


class TestMistakesOfUse:
    def test_a_dtype_that_cannot_be(self, run, ids, tmp_path) -> None:
        code, _, err = run(tmp_path / "ids.bin", "--out", tmp_path / "c.npz", "--vocab-size", 40, "--dtype", "foo")
        assert (code, "needed one that numpy knows" in err) == (1, True)
        code, _, err = run(tmp_path / "ids.bin", "--out", tmp_path / "c.npz", "--vocab-size", 65537)
        assert (code, "read as uint16, which ends at 65535" in err) == (1, True)

    def test_counts_do_not_land_among_the_sources(self, run, ids, tmp_path) -> None:
        before = (tmp_path / "ids.npy").read_bytes()
        for source, out in ((tmp_path / "ids.npy", "ids.npy"), (tmp_path, "c.npy")):
            code, _, err = run(source, "--out", tmp_path / out, "--vocab-size", 40, "--overwrite")
            assert (code, "lies in the source" in err) == (1, True)
        assert (tmp_path / "ids.npy").read_bytes() == before
        assert not (tmp_path / "c.npy").exists()

    def test_a_pipe_is_named_as_one(self, run, tmp_path) -> None:
        os.mkfifo(tmp_path / "p.bin")
        code, _, err = run(tmp_path / "p.bin", "--out", tmp_path / "c.npz", "--vocab-size", 40)
        assert (code, "is a pipe" in err) == (1, True)

    def test_a_tokenizer_that_is_no_text_is_named(self, run, tmp_path) -> None:
        (tmp_path / "t.json").write_bytes(b"\xff\xfe")
        code, _, err = run(tmp_path, "--out", tmp_path / "c.npz", "--tokenizer", tmp_path / "t.json")
        assert (code, "t.json is no tokenizer" in err) == (1, True)

    def test_a_mark_before_the_first_line_and_a_stream_cut_at_once(self, run, tokenizer, tmp_path) -> None:
        (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one two"}\n{"text": "two"}\n')
        code, _, _ = run(tmp_path / "b.jsonl", "--out", tmp_path / "c.npz", "--tokenizer", tokenizer)
        assert code == 0
        assert TokenCounts.load(tmp_path / "c.npz").counts.tolist()[:3] == [0, 1, 2]
        (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
        code, _, err = run(tmp_path / "cut.jsonl.gz", "--out", tmp_path / "d.npz", "--tokenizer", tokenizer)
        assert (code, "cut.jsonl.gz, line 1:" in err) == (1, True)

    def test_tables_in_a_folder_named_like_one_and_one_without_the_column(self, run, tokenizer, tmp_path) -> None:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        (tmp_path / "x.parquet").mkdir()
        pq.write_table(pa.table({"text": ["one two"]}), tmp_path / "x.parquet" / "part-0.parquet")
        pq.write_table(pa.table({"body": ["one two"]}), tmp_path / "x.parquet" / "part-1.parquet")
        call = (tmp_path / "x.parquet", "--out", tmp_path / "c.npz", "--tokenizer", tokenizer)
        code, _, err = run(*call)
        assert (code, "has the columns body" in err) == (1, True)
        (tmp_path / "c.npz.partial").unlink(missing_ok=True)
        code, out, _ = run(*call, "--skip-bad")
        assert (code, "part-1.parquet, row 0" in out) == (0, True)
        assert TokenCounts.load(tmp_path / "c.npz").n_tokens == 2


def test_splits_of_a_dataset_dict_are_added_up_and_said(tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    rows = {"train": [[1, 2, 3]], "test": [[1, 1, 1]]}
    both = {split: datasets.Dataset.from_dict({"input_ids": ids}) for split, ids in rows.items()}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "both"))
    for source, expected in (("both", [0, 4, 1, 1, 0]), ("both/train", [0, 1, 1, 1, 0])):
        out = tmp_path / f"{Path(source).name}.npz"
        with pytest.raises(SystemExit) as ended:
            app(["count", str(tmp_path / source), "--vocab-size", "5", "--out", str(out)])
        assert ended.value.code == 0
        assert TokenCounts.load(out).counts.tolist() == expected
        assert ("its splits test, train are added up" in capsys.readouterr().err) == (source == "both")
