"""What a resumption from an older checkpoint would cut is kept aside until the run has come past it."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import xarray
import zarr

from trainhooks.cli import app
from trainhooks.store import StoreError, StoreWriter, open_store
from trainhooks.store.format.kept import kept_place
from trainhooks.store.maintenance.compact import compact
from trainhooks.store.maintenance.copying import snapshot
from trainhooks.store.maintenance.export import export_step
from trainhooks.store.maintenance.repair import repair
from trainhooks.store.maintenance.verify import verify
from trainhooks.store.storage.fence import FencedStorage
from trainhooks.store.storage.local import LocalStorage


def check(run, path, count):
    """Every number of the first `count` records, whatever part of the store they lie in."""
    found = verify(path)
    assert found.problems == ()
    store = open_store(path)
    assert store.steps.tolist() == list(range(count))
    assert store.snapshot_steps.tolist() == [step for step in range(count) if run.has_snapshot(step)]
    for position, step in enumerate(store.snapshot_steps.tolist()):
        np.testing.assert_array_equal(store.snapshots[position], run.matrix(step))
        np.testing.assert_array_equal(store.label_counts(step), run.counts(step))
    np.testing.assert_array_equal(store.sketch, [run.sketch(step) for step in range(count)])
    np.testing.assert_array_equal(store["count.updates"], range(count))
    return store


def resumed(run, path, step, upto=None, *, close=False):
    """Go on after `step`, record up to `upto`, and let the store go."""
    writer = StoreWriter(path, run.layout, mode="resume", restart_step=step)
    run.append(writer, range(step + 1, step + 1 if upto is None else upto + 1))
    writer.close() if close else writer.release()


def branches(path):
    return sorted(name for name in os.listdir(path) if name.startswith(".kept-"))


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("step", [0, 10])
def test_a_cut_keeps_every_number_of_the_later_records(write, sparse_run, tmp_path, closed, step):
    path = write(sparse_run, records=29, close=closed)
    resumed(sparse_run, path, step, step + 9)
    check(sparse_run, path, step + 10)
    snapshot(kept_place(path), out=tmp_path / "copy")
    assert check(sparse_run, tmp_path / "copy", 29).complete == closed
    assert not branches(tmp_path / "copy")
    # the copy is a store like any: the run goes on with it
    resumed(sparse_run, tmp_path / "copy", 28, 35, close=True)
    check(sparse_run, tmp_path / "copy", 36)


def test_whole_run_numbers_are_kept_too(sparse_run, tmp_path):
    writer = StoreWriter(tmp_path / "s", sparse_run.layout)
    sparse_run.append(writer, range(9))
    cosines = np.random.default_rng(0).standard_normal((9, 2))
    writer.finish({"convergence.cosine_to_final": cosines})
    writer.close()
    resumed(sparse_run, tmp_path / "s", 6)
    assert np.isnan(open_store(tmp_path / "s")["convergence.cosine_to_final"]).all()
    np.testing.assert_array_equal(open_store_kept(tmp_path)["convergence.cosine_to_final"], cosines)


def open_store_kept(tmp_path):
    snapshot(kept_place(tmp_path / "s"), out=tmp_path / "copy")
    return open_store(tmp_path / "copy")


def test_nothing_is_kept_where_nothing_is_cut(write, sparse_run):
    path = write(sparse_run, records=9)
    assert not branches(path)
    for step in (None, 8, 100):
        StoreWriter(path, sparse_run.layout, mode="resume", restart_step=step).close()
        assert not branches(path)
    with pytest.raises(StoreError, match="keeps no records aside"):
        kept_place(path)


@pytest.mark.parametrize("step", [-1, -(1 << 70), 1 << 63, 1 << 70])
def test_a_step_that_is_none_touches_nothing(write, sparse_run, step):
    path = write(sparse_run, records=9, close=False)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"steps are 0 or more.*Nothing was changed"):
        StoreWriter(path, sparse_run.layout, mode="resume", restart_step=step)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_step_may_be_any_whole_number_kind(write, sparse_run):
    path = write(sparse_run, records=9)
    for step in (np.int64(5), True):
        StoreWriter(path, sparse_run.layout, mode="resume", restart_step=step).close()
        check(sparse_run, path, int(step) + 1)


def test_it_goes_when_the_run_has_come_past_it(write, sparse_run):
    path = write(sparse_run, records=24)
    resumed(sparse_run, path, 9, 22)
    assert branches(path)  # step 23 is not there again
    resumed(sparse_run, path, 22, 23)
    assert branches(path)  # in the journal alone
    StoreWriter(path, sparse_run.layout, mode="resume", restart_step=23).close()
    assert not branches(path)
    check(sparse_run, path, 24)


def test_a_run_that_is_closed_before_keeps_it(write, sparse_run):
    path = write(sparse_run, records=22)
    resumed(sparse_run, path, 9, 15, close=True)
    assert len(branches(path)) == 1
    assert verify(path).complete


def test_a_second_cut_further_back_leaves_the_first_branch_whole(write, sparse_run, tmp_path):
    path = write(sparse_run, records=29)
    resumed(sparse_run, path, 20, 23)
    resumed(sparse_run, path, 2, 13)
    check(sparse_run, path, 14)
    for attempt, count in ((0, 29), (1, 24), (None, 29)):
        snapshot(kept_place(path, attempt), out=tmp_path / f"copy-{attempt}")
        check(sparse_run, tmp_path / f"copy-{attempt}", count)
    with pytest.raises(StoreError, match="keeps no records of attempt 2 aside"):
        kept_place(path, 2)


def test_of_three_cuts_the_one_that_reaches_least_far_goes_and_is_named(write, sparse_run, tmp_path):
    path = write(sparse_run, records=29)
    resumed(sparse_run, path, 9, 12)
    resumed(sparse_run, path, 9, 11)
    with pytest.warns(UserWarning, match="those of attempt 2, steps 10 to 11, reach least far and are gone"):
        resumed(sparse_run, path, 9)
    assert [name[:10] for name in branches(path)] == [".kept-0000", ".kept-0001"]
    snapshot(kept_place(path), out=tmp_path / "copy")
    check(sparse_run, tmp_path / "copy", 29)


def test_readers_of_zarr_and_commands_do_not_see_it(write, sparse_run, tmp_path):
    path = write(sparse_run, records=22)
    plain = write(sparse_run, records=16, name="plain.zarr")
    resumed(sparse_run, path, 9, 15, close=True)
    assert len(branches(path)) == 1
    xarray.testing.assert_identical(
        xarray.open_zarr(path).drop_attrs().load(), xarray.open_zarr(plain).drop_attrs().load()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr-python's, of every file that is not its own
        group = zarr.open_group(path, mode="r", use_consolidated=False)
        assert set(group.array_keys()) == set(zarr.open_group(plain, mode="r", use_consolidated=False).array_keys())
        assert not list(group.group_keys())
    export_step(open_store(path), step=12, out=tmp_path / "m.npy", form="npy")
    np.testing.assert_array_equal(np.load(tmp_path / "m.npy"), sparse_run.matrix(12))
    snapshot(path, out=tmp_path / "copy")
    assert not branches(tmp_path / "copy")
    check(sparse_run, tmp_path / "copy", 16)
    (path / "step" / "zarr.json").unlink()
    assert any("step/zarr.json" in line for line in repair(path))
    assert len(branches(path)) == 1
    check(sparse_run, path, 16)


def test_compaction_leaves_what_is_kept(write, sparse_run, tmp_path):
    path = write(sparse_run, records=29)
    resumed(sparse_run, path, 20, 21, close=True)
    assert compact(path).rewritten
    check(sparse_run, path, 22)
    snapshot(kept_place(path), out=tmp_path / "copy")
    check(sparse_run, tmp_path / "copy", 29)


def test_overwriting_takes_it_away(write, sparse_run):
    path = write(sparse_run, records=22)
    resumed(sparse_run, path, 9)
    StoreWriter(path, sparse_run.layout, mode="overwrite").close()
    assert not branches(path)


def test_verify_inspect_and_snapshot_name_it(write, sparse_run, tmp_path, capsys):
    path = write(sparse_run, records=22)
    resumed(sparse_run, path, 9)
    (note,) = [note for note in verify(path).notes if note.key.startswith(".kept-")]
    assert "12 records of attempt 0, steps 10 to 21," in note.what
    assert f"`trainhooks snapshot {path} --kept --attempt 0 --out COPY` gets them back" in note.remedy
    assert open_store(path).summary()["kept"] == [f"{note.what}. {note.remedy}"]
    for command in (["verify", str(path)], ["inspect", str(path)]):
        with pytest.raises(SystemExit) as ended:
            app([*command])
        assert ended.value.code == 0
        assert "12 records of attempt 0" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as ended:
        app(["snapshot", str(path), "--kept", "--out", str(tmp_path / "copy")])
    assert ended.value.code == 0
    assert "22 records, last step 21" in capsys.readouterr().out
    check(sparse_run, tmp_path / "copy", 22)
    with pytest.raises(SystemExit) as ended:
        app(["snapshot", str(path), "--attempt", "0", "--out", str(tmp_path / "other")])
    assert ended.value.code == 1
    assert not (tmp_path / "other").exists()


class StopError(BaseException):
    """The process ends here: nothing tidies up."""


def test_stopped_anywhere_all_is_as_before_or_kept_whole(write, sparse_run, tmp_path, monkeypatch):
    base = write(sparse_run, records=14, close=False)
    resumed(sparse_run, base, 9, 11)
    plain = {name: getattr(LocalStorage, name) for name in ("link", "put_streamed", "delete")}
    left = 0

    def stopping(name):
        def act(self, *args):
            nonlocal left
            left -= 1
            if left == 0:
                raise StopError
            return plain[name](self, *args)

        return act

    for name in plain:
        monkeypatch.setattr(LocalStorage, name, stopping(name))
    before, ended, stop, outcomes = open_store(base).restarts, False, 1, set()
    while not ended:
        path = tmp_path / f"s{stop}"
        shutil.copytree(base, path)
        left = stop
        try:
            resumed(sparse_run, path, 3)
            ended = True
        except StopError:
            stop += 8
        left = 0
        (path / ".lock").unlink(missing_ok=True)  # its writer lives: this process
        cut = open_store(path).restarts != before
        outcomes.add(cut)
        snapshot(kept_place(path, 1) if cut else path, out=tmp_path / f"copy-{path.name}")
        check(sparse_run, tmp_path / f"copy-{path.name}", 12)
        snapshot(kept_place(path, 0), out=tmp_path / f"first-{path.name}")
        check(sparse_run, tmp_path / f"first-{path.name}", 14)
        resumed(sparse_run, path, 3)
        check(sparse_run, path, 4)
        assert len(branches(path)) == 2
    assert outcomes == {True, False}
    assert stop > 40


def no_links(monkeypatch):
    monkeypatch.setattr(LocalStorage, "link", lambda *_: False)


def test_where_links_do_not_work_files_are_copied(write, sparse_run, tmp_path, monkeypatch):
    no_links(monkeypatch)
    path = write(sparse_run, records=29)
    resumed(sparse_run, path, 20, 23)
    resumed(sparse_run, path, 2, 13)
    for attempt, count in ((0, 29), (1, 24)):
        snapshot(kept_place(path, attempt), out=tmp_path / f"copy-{attempt}")
        check(sparse_run, tmp_path / f"copy-{attempt}", count)


def test_what_would_have_to_be_copied_is_bounded(write, sparse_run, monkeypatch):
    no_links(monkeypatch)
    monkeypatch.setattr("trainhooks.store.format.kept.MOST_COPIED", 100)
    path = write(sparse_run, records=22)
    with pytest.warns(UserWarning, match=r"steps 10 to 21 that attempt 0 had could not be kept aside .*up to 100"):
        resumed(sparse_run, path, 9, 12)
    assert not branches(path)
    check(sparse_run, path, 13)


def test_without_room_the_run_goes_on_and_says_so(write, sparse_run, monkeypatch):
    path = write(sparse_run, records=22)
    monkeypatch.setattr(LocalStorage, "room", lambda _: 1000)
    with pytest.warns(UserWarning, match=r"after step 9, .*steps 10 to 21.*room for 1,000"):
        resumed(sparse_run, path, 9, 12)
    assert not branches(path)
    check(sparse_run, path, 13)


def test_a_disk_that_fills_meanwhile_leaves_no_half_branch(write, sparse_run, monkeypatch):
    path = write(sparse_run, records=22)
    put = FencedStorage.put

    def full(self, key, data):
        if key.startswith(".kept-"):
            raise OSError(28, "No space left on device")
        return put(self, key, data)

    monkeypatch.setattr(FencedStorage, "put", full)
    with pytest.warns(UserWarning, match="No space left"):
        resumed(sparse_run, path, 9, 12)
    assert not branches(path)
    check(sparse_run, path, 13)


def test_a_branch_that_was_tampered_with_is_no_danger(write, sparse_run, tmp_path):
    path = write(sparse_run, records=22)
    resumed(sparse_run, path, 9)
    (name,) = branches(path)
    note = path / name / "kept.json"
    about = json.loads(note.read_text())
    for bad in ("", "[]", "[" * 3000, json.dumps(about | {"last": True}), json.dumps(about | {"attempt": 7})):
        note.write_text(bad)
        assert not [one for one in verify(path).notes if one.key.startswith(".kept-")]
        assert open_store(path).kept == []
    note.write_text(json.dumps(about | {"when": "\x1b[31m"}))
    with pytest.raises(SystemExit):
        app(["verify", str(path)])
    note.write_text(json.dumps(about))
    (path / name / "root.json").write_text("{}")
    with pytest.raises(StoreError):
        snapshot(kept_place(path), out=tmp_path / "copy")
    resumed(sparse_run, path, 5)  # goes on all the same
    check(sparse_run, path, 6)
    (path / ".kept-0003-00000000").symlink_to(tmp_path)
    assert verify(path).sound
    resumed(sparse_run, path, 5)
    assert tmp_path.exists()
    assert not (path / ".kept-0003-00000000").is_symlink()


def test_a_kept_store_is_read_only(write, sparse_run):
    path = write(sparse_run, records=22)
    resumed(sparse_run, path, 9)
    with pytest.raises(StoreError, match="is not changed"):
        StoreWriter(kept_place(path), sparse_run.layout, mode="resume")
    assert verify(kept_place(path)).sound
