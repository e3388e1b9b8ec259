"""Counting a corpus: the same whoever counts, each piece once however it is interrupted."""

import multiprocessing
import os
import signal
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from test_arrays import VOCAB, ids, plain

from trainhooks.corpora import arrays, counting
from trainhooks.corpora import resume as partial
from trainhooks.corpora.base import LabelRule, Settings, Tally
from trainhooks.corpora.counting import count_corpus
from trainhooks.corpora.sources import open_sources

SETTINGS = Settings(vocab_size=VOCAB)


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch):
    monkeypatch.setattr(arrays, "PIECE_BYTES", 4000)
    monkeypatch.setattr(counting, "_TASK_BYTES", 1)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for seed in range(3):
        ids(7000, seed=seed).tofile(folder / f"{seed}.bin")
    return folder


@pytest.fixture
def expected(corpus):
    return plain([np.fromfile(path, dtype="<u2").tolist() for path in sorted(corpus.glob("*.bin"))])


@dataclass(frozen=True)
class Trap:
    """A piece that goes wrong in its own way."""

    key: str
    how: str
    fingerprint: str = "trap"
    size: int = 5000

    def tally(self, settings):
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "stop":
            raise KeyboardInterrupt
        if self.how == "bad":
            raise ValueError("piece z is bad")
        return Tally(np.ones(settings.vocab_size, dtype=np.int64), documents=1, tokens=settings.vocab_size)


def test_counts_hash_and_report(corpus, expected):
    pieces = open_sources([corpus], SETTINGS)
    counts, report = count_corpus(pieces, settings=SETTINGS)
    assert counts.counts.tolist() == expected
    assert (report.pieces, report.resumed, report.tokens, report.skipped) == (len(pieces), 0, 21000, 0)
    assert (counts.documents, counts.tokenizer_hash, counts.rule) == (None, None, "every position counted")
    again, _ = count_corpus(reversed(open_sources(sorted(corpus.iterdir())[::-1], SETTINGS)), settings=SETTINGS)
    assert again.corpus_hash == counts.corpus_hash
    fewer, _ = count_corpus(pieces[1:], settings=SETTINGS)
    assert fewer.corpus_hash != counts.corpus_hash


def test_several_processes_and_executors_count_the_same(corpus, expected):
    pieces = open_sources([corpus], SETTINGS)
    alone, _ = count_corpus(pieces, settings=SETTINGS, workers=1)
    several, _ = count_corpus(pieces, settings=SETTINGS, workers=2)
    with ThreadPoolExecutor(3) as pool:
        threads, _ = count_corpus(pieces, settings=SETTINGS, executor=pool)
    for found in (several, threads):
        assert found.counts.tolist() == expected
        assert found.corpus_hash == alone.corpus_hash


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_dask_client_counts_the_same(corpus, expected):
    distributed = pytest.importorskip("distributed")
    pieces = open_sources([corpus], SETTINGS)
    options = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        counts, _ = count_corpus(pieces, settings=SETTINGS, executor=client)
    assert counts.counts.tolist() == expected


@pytest.mark.parametrize(("how", "error"), [("stop", KeyboardInterrupt), ("bad", ValueError)])
def test_what_was_done_is_kept_and_gone_on_from(corpus, tmp_path, how, error):
    resume = tmp_path / "counts.npz.partial"
    pieces = open_sources([corpus], SETTINGS)
    with pytest.raises(error):
        count_corpus([*pieces, Trap("z", how)], settings=SETTINGS, resume=resume)
    assert resume.exists()
    whole, report = count_corpus([*pieces, Trap("z", "fine")], settings=SETTINGS, resume=resume)
    plain_run, _ = count_corpus([*pieces, Trap("z", "fine")], settings=SETTINGS)
    assert report.resumed == len(pieces)
    assert report.tokens == 21000 + VOCAB
    assert np.array_equal(whole.counts, plain_run.counts)
    assert whole.corpus_hash == plain_run.corpus_hash
    again, report = count_corpus([*pieces, Trap("z", "fine")], settings=SETTINGS, resume=resume)
    assert report.resumed == report.pieces
    assert np.array_equal(again.counts, whole.counts)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_killed_at_any_time_nothing_counts_twice(corpus, tmp_path, monkeypatch, expected):
    # after SIGKILL the file is as of some saving: each of them must lead to the same counts
    resume, pieces, states = tmp_path / "p", open_sources([corpus], SETTINGS), []
    save = partial.Partial.save

    def keep(self):
        save(self)
        states.append(resume.read_bytes())

    with monkeypatch.context() as patched:
        patched.setattr(partial.Partial, "save", keep)
        patched.setattr(partial.Partial, "_is_due", lambda self: True)
        count_corpus(pieces, settings=SETTINGS, resume=resume)
    assert len(states) == len(pieces)
    for done, state in enumerate(states, start=1):
        resume.write_bytes(state)
        counts, report = count_corpus(pieces, settings=SETTINGS, resume=resume)
        assert counts.counts.tolist() == expected
        assert report.resumed == done


def test_a_worker_that_dies_is_reported(tmp_path):
    resume = tmp_path / "p"
    pieces = [Trap("a", "fine"), Trap("z", "die")]
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        pytest.raises(ChildProcessError, match="what was done is kept in"),
    ):
        count_corpus(pieces, settings=SETTINGS, executor=pool, resume=resume)


def test_foreign_and_damaged_partial_files_are_refused(corpus, tmp_path):
    resume, pieces = tmp_path / "p", open_sources([corpus], SETTINGS)
    count_corpus(pieces, settings=SETTINGS, resume=resume)
    with pytest.raises(ValueError, match="was counted with rule"):
        count_corpus(pieces, settings=Settings(VOCAB, rule=LabelRule(window=9)), resume=resume)
    with pytest.raises(ValueError, match="was counted with vocab_size 60, this is 61"):
        count_corpus(pieces, settings=Settings(VOCAB + 1), resume=resume)
    with pytest.raises(ValueError, match="is not among the sources"):
        count_corpus(pieces[1:], settings=SETTINGS, resume=resume)
    ids(7000, seed=9).tofile(corpus / "1.bin")
    os.utime(corpus / "1.bin", ns=(1, 1))
    with pytest.raises(ValueError, match=r"1\.bin.* has changed"):
        count_corpus(open_sources([corpus], SETTINGS), settings=SETTINGS, resume=resume)
    whole = resume.read_bytes()
    for damaged in (whole[:-40], b"", b"text", whole[:90] + b"\xff" + whole[91:]):
        resume.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"no partial count that can be gone on from: .*Delete it"):
            count_corpus(pieces, settings=SETTINGS, resume=resume)


def test_bad_files_are_skipped_and_reported(corpus):
    (corpus / "cut.bin").write_bytes(b"\0\0\0")
    with pytest.raises(ValueError, match="no whole number"):
        open_sources([corpus], SETTINGS)
    skipping = Settings(VOCAB, skip_bad=True)
    _, report = count_corpus(open_sources([corpus], skipping), settings=skipping)
    assert report.skipped == 1
    assert "cut.bin has 3 bytes" in report.problems[0]


def test_nothing_to_count_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="1 files, with nothing to count"):
        open_sources([tmp_path], SETTINGS)
    with pytest.raises(ValueError, match="nothing to count"):
        open_sources([], SETTINGS)
    with pytest.raises(FileNotFoundError, match="is not there"):
        open_sources([tmp_path / "none"], SETTINGS)
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(ValueError, match=r"ends in \.xyz"):
        open_sources([tmp_path / "a.xyz"], SETTINGS)
    with pytest.raises(ValueError, match="no pieces"):
        count_corpus([], settings=SETTINGS)
    np.zeros(10, dtype="<u2").tofile(tmp_path / "a.bin")
    rule = Settings(VOCAB, rule=LabelRule(leave_out=(0,)))
    with pytest.raises(ValueError, match="nothing in the corpus counts: 10 tokens were read"):
        count_corpus(open_sources([tmp_path], rule), settings=rule)
    piece = Trap("a", "fine")
    with pytest.raises(ValueError, match="given twice"):
        count_corpus([piece, piece], settings=SETTINGS)
    with pytest.raises(ValueError, match="workers is 0"):
        count_corpus([piece], settings=SETTINGS, workers=0)


def test_links_and_names_given_twice_count_once(corpus, expected):
    (corpus / "deeper").mkdir()
    (corpus / "deeper" / "loop").symlink_to(corpus)
    (corpus / "deeper" / "again.bin").symlink_to(corpus / "0.bin")
    (corpus / ".hidden.bin").write_bytes(b"\0")
    (corpus / "README.md").write_text("no corpus")
    pieces = open_sources([corpus, corpus / "1.bin", str(corpus)], SETTINGS)
    counts, _ = count_corpus(pieces, settings=SETTINGS)
    assert counts.counts.tolist() == expected


def test_progress_goes_to_stderr_and_only_when_asked(corpus, capsys):
    pieces = open_sources([corpus], SETTINGS)
    count_corpus(pieces, settings=SETTINGS)
    assert capsys.readouterr() == ("", "")
    count_corpus(pieces, settings=SETTINGS, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "100%" in err
    assert "tokens/s" in err


class KilledWorker(Exception):
    """As Dask calls it."""


class Losing:
    """An executor that loses its worker."""

    def submit(self, *_):
        future = Future()
        future.set_exception(KilledWorker("task"))
        return future


def test_a_lost_worker_of_dask_is_reported(corpus):
    with pytest.raises(ChildProcessError, match="a worker process died"):
        count_corpus(open_sources([corpus], SETTINGS), settings=SETTINGS, executor=Losing())
