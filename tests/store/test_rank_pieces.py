"""Several ranks write one record, each its own rows."""

import os
import resource
from dataclasses import replace

import numpy as np
import pytest

from trainhooks.core.variable import Variable
from trainhooks.store import PieceWriter, StoreError, StoreWriter, open_store


@pytest.fixture
def begin(run, tmp_path):
    """The first rank's writer, and the second's; blocks of 4."""

    def begin(*, mode="create", rows=(40, 70), variables=()):
        layout = replace(run.layout, block=4, variables=variables)
        writer = StoreWriter(tmp_path / "s.zarr", layout, pieces=2, mode=mode)
        return writer, PieceWriter(writer.path, piece=1, pieces=2, rows=rows, attempt=writer.attempt)

    return begin


def append(run, writer, other, step):
    """A record's two pieces."""
    other.append_piece(step, snapshot=run.matrix(step)[40:])
    writer.append(step, {}, snapshot=run.matrix(step)[:40], rows=(0, 40))


def test_many_ranks_need_no_more_files_than_a_process_may_open(run, tmp_path):
    """A mapped file holds a descriptor: a block of 4 records of 30 pieces are 120, where 60 more may be opened."""
    layout = replace(run.layout, block=4, variables=())
    writer = StoreWriter(tmp_path / "s.zarr", layout, pieces=30)
    rows = [(0, 12), *((start, start + 2) for start in range(12, 70, 2))]
    others = [PieceWriter(writer.path, piece=n, pieces=30, rows=rows[n], attempt=0) for n in range(1, 30)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 60, hard))
    try:
        for step in range(7):
            for other, (start, stop) in zip(others, rows[1:], strict=True):
                other.append_piece(step, snapshot=run.matrix(step)[start:stop])
            writer.append(step, {}, snapshot=run.matrix(step)[:12], rows=(0, 12))
        np.testing.assert_array_equal(list(open_store(writer.path).snapshots), [run.matrix(step) for step in range(7)])
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    writer.close()


def test_ranks_write_pieces_of_a_record_without_a_gather(run, tmp_path):
    layout = replace(run.layout, block=4, variables=())
    writer = StoreWriter(tmp_path / "s.zarr", layout, pieces=3)
    parts = [(0, 27), (27, 53), (53, 70)]
    others = [PieceWriter(writer.path, piece=n, pieces=3, rows=parts[n], attempt=writer.attempt) for n in (1, 2)]
    for step in range(6):
        writer.append(
            step,
            {},
            snapshot=run.matrix(step)[:27],
            rows=(0, 27),
            sketch=run.sketch(step),
            label_counts=np.ones(70, int),
        )
        others[0].append_piece(step, snapshot=run.matrix(step)[27:53], label_counts=np.ones(70, int))
        assert writer.durable_step == (step - 1 if step else None)
        assert len(open_store(writer.path).steps) == step
        others[1].append_piece(step, snapshot=run.matrix(step)[53:], sketch=run.sketch(step))
        assert writer.durable_step == step
    for folded in (False, True):
        if folded:
            writer.close()
        store = open_store(writer.path)
        assert store.steps.tolist() == list(range(6))
        np.testing.assert_array_equal(list(store.snapshots), [run.matrix(step) for step in range(6)])
        np.testing.assert_array_equal(store.sketch, [2 * run.sketch(step) for step in range(6)])
        assert store.label_counts(5).tolist() == [2] * 70
    with pytest.raises(ValueError, match="piece 0 is the store writer's"):
        PieceWriter(writer.path, piece=0, pieces=3, rows=(0, 27), attempt=0)


@pytest.mark.parametrize("rows", [(30, 70), (0, 70), (45, 70), (40, 69)])
def test_rows_that_overlap_or_leave_a_gap_stop_the_run_at_that_record(run, begin, rows):
    writer, other = begin(rows=rows)
    other.append_piece(0, snapshot=run.matrix(0)[slice(*rows)])
    with pytest.raises(StoreError, match=f"step 0: .* rows 0:40, {rows[0]}:{rows[1]}"):
        writer.append(0, {}, snapshot=run.matrix(0)[:40], rows=(0, 40))
    assert writer.durable_step is None
    with pytest.raises(StoreError, match="each row"):
        open_store(writer.path).output_embedding(0)
    writer.release()
    with pytest.raises(StoreError, match="resume it from a step before"):
        StoreWriter(writer.path, writer.layout, pieces=2, mode="resume")


def test_rows_beyond_the_matrix_are_refused(begin):
    with pytest.raises(ValueError, match="40:71"):
        begin(rows=(40, 71))


def test_a_late_piece_of_an_older_attempt_holds_nothing_up(run, begin):
    writer, old = begin()
    for step in range(2):
        append(run, writer, old, step)
    writer.release()
    writer, other = begin(mode="resume")
    old.append_piece(2, snapshot=-run.matrix(2)[40:])
    for step in range(2, 6):
        append(run, writer, other, step)
    assert writer.durable_step == 5
    writer.close()
    store = open_store(writer.path)
    assert store.steps.tolist() == list(range(6))
    np.testing.assert_array_equal(store.output_embedding(2), run.matrix(2))


def test_finish_counts_the_records_whose_pieces_came_late(run, begin):
    writer, other = begin(variables=(Variable("w.r", whole_run=True),))
    for step in range(3):
        writer.append(step, {}, snapshot=run.matrix(step)[:40], rows=(0, 40))
        other.append_piece(step, snapshot=run.matrix(step)[40:])
    writer.finish({"w.r": np.arange(3.0)})
    writer.close()
    assert open_store(writer.path)["w.r"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("step", [-1, 1 << 63])
def test_steps_that_no_array_holds_are_refused(run, begin, step):
    writer, other = begin()
    with pytest.raises(ValueError, match="steps are 0 or more"):
        other.append_piece(step, snapshot=run.matrix(0)[40:])
    with pytest.raises(ValueError, match="steps are 0 or more"):
        writer.append(step, {})
