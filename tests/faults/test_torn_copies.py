"""Copies of a store that is being written, file by file in random order: after repair no number is another one."""

import random

import numpy as np
import pytest

from trainhooks.core.variable import Variable
from trainhooks.store import Layout, StoreError, StoreWriter, open_store
from trainhooks.store.maintenance.repair import repair
from trainhooks.store.maintenance.verify import verify

LAYOUT = Layout(
    vocab=5,
    dim=2,
    groups=("g",),
    sketch_size=2,
    variables=(Variable("loss"), Variable("rare"), Variable("end", whole_run=True)),
    block=4,
)


def matrix(step):
    return np.full((5, 2), step + 0.25, np.float32)


def append(writer, step):
    values = {"loss": step / 2} | ({"rare": step / 4} if step % 3 == 0 else {})
    snapshot = matrix(step) if step % 2 == 0 else None
    writer.append(step, values, sketch=np.full((1, 2), step, np.float32), snapshot=snapshot)


def tear(source, copy, rng, *, records):
    """Write a run and copy its files meanwhile, in random order, as the listing of one moment had them."""
    writer = StoreWriter(source, LAYOUT)
    state = {"files": [], "begin": rng.randrange(3, 40), "puts": 0, "seen": False}
    odds = rng.choice((0.05, 0.3, 0.8))

    def some():
        state["puts"] += 1
        if state["puts"] < state["begin"]:
            return
        if not state["seen"]:
            state["files"] = sorted(file for file in source.rglob("*") if file.is_file() and file.name != ".lock")
            rng.shuffle(state["files"])
            state["seen"] = True
        while state["files"] and rng.random() < odds:
            copy_one(state["files"].pop())

    def copy_one(file):
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return
        to = copy / file.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(content)

    put_streamed = writer.storage.put_streamed
    writer.storage.put_streamed = lambda write: (some(), put_streamed(write))[1]
    for step in range(records):
        append(writer, step)
    if rng.random() < 0.3:
        writer.finish({"end": np.arange(records, dtype=float)})
        writer.close()
    some()
    for file in state["files"]:
        copy_one(file)
    writer.release()


def wrong_numbers(path):
    """What a store gives that the run did not measure; None where it cannot be opened."""
    try:
        store = open_store(path)
        loss, rare, end, sketch, steps = store["loss"], store["rare"], store["end"], store.sketch, store.steps
        found = []
        for at, step in enumerate(int(step) for step in steps):
            wanted = step / 4 if step % 3 == 0 else np.nan
            if loss[at] != step / 2 or not (sketch[at] == step).all():
                found.append(f"record {step}")
            if not np.array_equal(rare[at], wanted, equal_nan=True):
                found.append(f"rare {step}: {rare[at]}")
            if not (np.isnan(end[at]) or end[at] == step):
                found.append(f"end {step}: {end[at]}")
        for at, step in enumerate(store.snapshot_steps):
            if not (store.snapshots[at] == matrix(int(step))).all():
                found.append(f"snapshot {step}")
    except StoreError:
        return None
    return found


def torn_copies(count, *, seed, folder):
    """Outcomes of so many torn copies after repair: sound, refused, and what was wrong."""
    outcomes, wrong = {"sound": 0, "unreadable": 0, "refused": 0, "records": 0}, []
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        copy = folder / f"copy-{number}"
        copy.mkdir()
        tear(folder / f"run-{number}", copy, rng, records=rng.randrange(3, 22))
        try:
            repair(copy)
        except StoreError:
            outcomes["refused"] += 1
            continue
        found = wrong_numbers(copy)
        if found is None:
            outcomes["unreadable"] += 1
            continue
        outcomes["sound"] += verify(copy).sound
        outcomes["records"] += len(open_store(copy).steps)
        wrong += [f"{number}: {one}" for one in found]
    return outcomes, wrong


@pytest.mark.parametrize("seed", range(3))
def test_no_torn_copy_gives_another_number_after_repair(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("trainhooks.store.storage.local.sync", lambda descriptor: None)
    outcomes, wrong = torn_copies(8, seed=seed, folder=tmp_path)
    assert wrong == []
    assert outcomes["sound"] > 0
    assert outcomes["records"] > 0
