"""A machine that stops before its disk has everything: what is torn at the journal's end goes, and is named."""

import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest

from trainhooks.sinks import JsonLinesSink, StoreSink
from trainhooks.sinks.base import Record
from trainhooks.store import PieceWriter, StoreError, StoreWriter, open_store
from trainhooks.store.maintenance.verify import verify

CUT = 30


def journal(path):
    return sorted((path / ".journal").iterdir())


def tear(file, how):
    """As a file system leaves what it has named and not written."""
    content = file.read_bytes()
    torn = {
        "empty": b"",
        "cut in the length": content[:5],
        "cut in the header": content[:40],
        "cut in the numbers": content[:-7],
        "zeros": bytes(len(content)),
        "zeros at the end": content[:-64] + bytes(64),
        "longer": content + bytes(8),
    }
    file.write_bytes(torn[how])


@pytest.mark.parametrize(
    "how",
    ["empty", "cut in the length", "cut in the header", "cut in the numbers", "zeros", "zeros at the end", "longer"],
)
def test_a_torn_end_is_dropped_and_its_steps_are_said(write, run, how):
    path = write(run, records=9, close=False)
    for file in journal(path)[-2:]:
        tear(file, how)
    with pytest.warns(RuntimeWarning, match=r"were torn.*: the steps 7, 8 are lost") as caught:
        writer = StoreWriter(path, run.layout, mode="resume")
    assert len(caught) == 1
    assert writer.last_step == 6
    run.append(writer, range(7, 12))
    writer.close()
    store = open_store(path)
    assert store.steps.tolist() == list(range(12))
    np.testing.assert_array_equal(store.output_embedding(8), run.matrix(8))
    assert verify(path).sound


def test_one_that_is_torn_before_a_whole_one_is_no_crash(write, run):
    path = write(run, records=9, close=False)
    for file in journal(path)[4], journal(path)[8]:
        tear(file, "zeros")
    with pytest.warns(RuntimeWarning, match="the steps 8 are lost"), pytest.raises(StoreError, match="is damaged"):
        StoreWriter(path, run.layout, mode="resume").close()
    assert len(journal(path)) == 8
    with pytest.raises(StoreError, match="is damaged"):
        open_store(path).output_embedding(4)


def with_an_unknown_type(file):
    """The record as a later version might write it: one more array, of a type that is not known here."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = content[8:start].rstrip()[:-1] + b',"later":{"dtype":"BOOL","shape":[0],"data_offsets":[0,0]}}'
    content = len(header).to_bytes(8, "little") + header + content[start:]
    file.unlink()
    file.with_name(f"{file.name.rpartition('-')[0]}-{zlib.crc32(content):08x}.safetensors").write_bytes(content)


def as_a_link(file):
    file.rename(moved := file.parents[2] / "moved")
    file.symlink_to(moved)


@pytest.mark.parametrize("change", [with_an_unknown_type, as_a_link])
def test_a_record_that_has_all_its_bytes_is_never_dropped(write, run, change):
    path = write(run, records=3, close=False)
    change(journal(path)[-1])
    before = journal(path)
    with pytest.raises(StoreError, match=r"is damaged|is a link"):
        StoreWriter(path, run.layout, mode="resume").close()
    assert journal(path) == before


def test_all_may_be_torn_and_what_is_folded_stays(write, run):
    path = write(run, records=34, close=False)
    assert len(journal(path)) == 2
    for file in journal(path):
        tear(file, "zeros")
    with pytest.warns(RuntimeWarning, match="the steps 32, 33 are lost"):
        writer = StoreWriter(path, run.layout, mode="resume", recorded=33)
    assert writer.last_step == 31
    writer.close()
    assert [(gap["after"], gap["until"]) for gap in open_store(path).gaps] == [(31, 33)]


def test_nothing_is_dropped_where_another_layout_is_refused_or_all_is_whole(write, run, sparse_run):
    path = write(run, records=5, close=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StoreWriter(path, run.layout, mode="resume").release()
    tear(journal(path)[-1], "zeros")
    before = journal(path)
    with pytest.raises(StoreError, match="another layout"):
        StoreWriter(path, replace(run.layout, dim=2), mode="resume")
    assert journal(path) == before


def test_of_several_ranks_a_record_with_one_torn_piece_goes(run, tmp_path):
    path = tmp_path / "ranks.zarr"
    writer = StoreWriter(path, run.layout, pieces=2)
    other = PieceWriter(path, piece=1, pieces=2, rows=(CUT, run.layout.vocab), attempt=writer.attempt)
    for step in range(4):
        matrix = run.matrix(step)
        writer.append(step, {}, snapshot=matrix[:CUT], rows=(0, CUT))
        if step < 3:  # the last record's second piece was never written
            other.append_piece(step, snapshot=matrix[CUT:])
    writer.release()
    torn = next(file for file in journal(path) if "000002-0000-0001of0002" in file.name)
    tear(torn, "cut in the numbers")
    with pytest.warns(RuntimeWarning, match="the steps 2 are lost"):
        StoreWriter(path, run.layout, mode="resume").close()
    store = open_store(path)
    assert store.steps.tolist() == [0, 1]
    np.testing.assert_array_equal(store.output_embedding(1), run.matrix(1))


def record(step, run, **changed):
    return Record(step, {"count.updates": np.asarray(step)}, snapshot=run.matrix(step), **changed)


def test_a_refused_record_keeps_nobody_waiting(run, tmp_path):
    sink = StoreSink(tmp_path / "run.zarr")
    sink.pieces = 2
    sink.open(run.layout)
    with pytest.raises(ValueError, match="does not fit"):
        sink.write(Record(5, {"count.updates": np.zeros(3)}))
    assert sink.settle(seconds=1e9), "waits for a record that was never taken"
    sink.close()


@pytest.mark.parametrize("name", ["StoreSink", "JsonLinesSink"])
def test_a_sink_that_is_not_open_says_so(run, tmp_path, name):
    sink = {"StoreSink": StoreSink, "JsonLinesSink": JsonLinesSink}[name](tmp_path / "there")
    with pytest.raises(RuntimeError, match=rf"this {name} is not open: call open\(layout\)"):
        sink.write(record(0, run))
    assert not (tmp_path / "there").exists()
