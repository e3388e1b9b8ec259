"""Every sink keeps what `Sink` promises; one that is new is found, and must bring its place and its reader here."""

import json
import threading
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from sink_conformance import (
    FINAL,
    LAYOUT,
    SECONDS,
    STEPS,
    VOCAB,
    Case,
    Kept,
    begun,
    check_begins_anew,
    check_closes,
    check_finishes,
    check_goes_on,
    check_kept,
    check_late_writes,
    check_leaves_nothing,
    check_records,
    check_says_early,
    check_settles,
    in_order,
    record,
    sink_names,
)
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.util.tensor_util import make_ndarray

from trainhooks.integrations.host import HostLog
from trainhooks.sinks import JsonLinesSink, LoggerSink, MemorySink, RankRowsSink, Sink, StoreSink, TensorBoardSink
from trainhooks.sinks.event_files import EVENTS
from trainhooks.sinks.event_files import FINAL as FINAL_EVENTS
from trainhooks.sinks.host_tags import HOSTS_OWN, PREFIX
from trainhooks.sinks.logger import STEP
from trainhooks.sinks.overview import FAMILY
from trainhooks.store import StoreWriter, is_store, open_store
from trainhooks.store.writing import background

CUT = 4
"""The first rank's rows; the second has the rest."""


class TwoRanks(RankRowsSink):
    """A store whose matrices two ranks write: the second rank's sink beside the first rank's, as one."""

    def __init__(self, folder, mode):
        self.store = StoreSink(folder / "run.zarr", mode=mode)
        self.store.pieces = 2
        self.rows = None

    def check(self):
        self.store.check()

    def open(self, layout, *, restart_step=None):
        self.store.open(layout, restart_step=restart_step)
        where = {"piece": 1, "pieces": 2, "rows": (CUT, VOCAB)}
        self.rows = RankRowsSink(self.store.path, attempt=self.store.attempt, durability="process", **where)

    def write(self, one):
        assert self.rows is not None, "open() comes first"
        matrix = one.snapshot
        here = one if matrix is None else replace(one, snapshot=matrix[:CUT], rows=(0, CUT))
        there = one if matrix is None else replace(one, snapshot=matrix[CUT:], rows=(CUT, VOCAB))
        self.rows.write(there)
        self.store.write(here)

    @property
    def cpu_seconds(self):
        return self.store.cpu_seconds + (0.0 if self.rows is None else self.rows.cpu_seconds)

    def settle(self, *, seconds):
        rows = self.rows is None or self.rows.settle(seconds=seconds)
        return self.store.settle(seconds=seconds) and rows

    def finish(self, values):
        self.store.finish(values)

    def close(self):
        if self.rows is not None:
            self.rows.close()
        self.store.close()


def of_store(folder, sink):
    path = folder / "run.zarr"
    if not is_store(path):
        return None
    store = open_store(path)
    kept = Kept({int(step): {} for step in store.steps})
    for variable in (v for v in LAYOUT.variables if not v.whole_run):
        for step, value in zip(store.steps.tolist(), store[variable.name], strict=True):
            for tag, number in entries(variable, value):
                if not np.isnan(number):
                    kept.numbers[step][tag] = number
    for step in store.snapshot_steps.tolist():
        kept.matrices[step] = store.output_embedding(step)
        with suppress(ValueError):  # says that there are none
            kept.counts[step] = store.label_counts(step)
    return kept


def entries(variable, value):
    """The tags of one record's value, as loggers have them; a vector along the model's axes has none."""
    if not variable.dims:
        return [(variable.tag, float(value))]
    if variable.dims != ("group",):
        return []
    return [(f"{variable.tag}/{group}", float(x)) for group, x in zip(LAYOUT.groups, value, strict=True)]


def of_json_lines(folder, sink):
    path = folder / "run.jsonl"
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    scalars = [{tag: x for tag, x in line.items() if tag != "step" and not isinstance(x, list)} for line in lines]
    assert len({line["step"] for line in lines}) == len(lines)
    return Kept({line["step"]: numbers for line, numbers in zip(lines, scalars, strict=True)})


def of_events(folder, sink=None, *, below="events", suffix=EVENTS):
    found = []
    for path in sorted((folder / below).glob(f"events.*{suffix}")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.startswith(f"{FAMILY}/"):  # the same numbers a second time
                    continue
                number = value.simple_value
                if value.WhichOneof("value") == "tensor":
                    number = float(make_ndarray(value.tensor))
                elif value.WhichOneof("value") != "simple_value":
                    continue
                found.append((event.step, value.tag.removeprefix(PREFIX), number))
    steps = [step for step, _, _ in found]
    assert steps == sorted(steps)
    assert len({(step, tag) for step, tag, _ in found}) == len(found), "drawn twice"
    return Kept(dict(in_order(found)))


def of_memory(folder, sink):
    return Kept(
        {one.step: dict(one.scalars) for one in sink.records},
        {one.step: one.matrix for one in sink.records if one.matrix is not None},
        {one.step: one.label_counts for one in sink.records if one.label_counts is not None},
    )


def of_host_log(folder, sink):
    found = []
    sink.drain(lambda scalars, step: found.append((step, scalars)))
    return Kept({step: {tag.removeprefix(PREFIX): x for tag, x in scalars.items()} for step, scalars in found})


class Logged(LoggerSink):
    """A logger sink, with what its function was called with."""

    def __init__(self):
        self.calls = []
        super().__init__(lambda numbers, step: self.calls.append((step, numbers)))


def of_logger(folder, sink):
    assert all(numbers[STEP] == step for step, numbers in sink.calls)
    kept = [
        (step, {t.removeprefix(PREFIX): x for t, x in numbers.items() if t != STEP}) for step, numbers in sink.calls
    ]
    return Kept(dict(kept))


CASES = {
    "StoreSink": Case(
        StoreSink, lambda folder, mode: StoreSink(folder / "run.zarr", mode=mode), of_store, matrices=True
    ),
    "RankRowsSink": Case(RankRowsSink, TwoRanks, of_store, matrices=True),
    "JsonLinesSink": Case(JsonLinesSink, lambda folder, mode: JsonLinesSink(folder / "run.jsonl"), of_json_lines),
    "TensorBoardSink": Case(
        TensorBoardSink,
        lambda folder, mode: TensorBoardSink(folder / "events"),
        of_events,
        beside=lambda folder: of_events(folder, below="events/earlier-1"),
        exact=False,
    ),
    "MemorySink": Case(MemorySink, lambda folder, mode: MemorySink(), of_memory, lasts=False, matrices=True),
    "HostLog": Case(
        HostLog, lambda folder, mode: HostLog(), of_host_log, lasts=False, takes=lambda tag: tag not in HOSTS_OWN
    ),
    "LoggerSink": Case(
        LoggerSink, lambda folder, mode: Logged(), of_logger, lasts=False, takes=lambda tag: tag not in HOSTS_OWN
    ),
}
LASTING = [name for name, case in CASES.items() if case.lasts]
"""Of those in memory the records end with the process: no run goes on with them."""


def final_of(folder, sink):
    """The whole-run values [record, group] where the sink keeps them."""
    if isinstance(sink, MemorySink):
        return sink.final[FINAL]
    if isinstance(sink, StoreSink | TwoRanks):
        return np.asarray(open_store(folder / "run.zarr")[FINAL])
    if isinstance(sink, TensorBoardSink):
        kept = of_events(folder, suffix=FINAL_EVENTS)
        tags = [f"{FINAL.replace('.', '/')}/{group}" for group in LAYOUT.groups]
        return np.array([[numbers[tag] for tag in tags] for numbers in kept.numbers.values()])
    return None


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(params=LASTING)
def lasting(request):
    return CASES[request.param]


def test_no_sink_is_forgotten():
    missing = sink_names() - set(CASES)
    assert not missing, f"give these a case in CASES: {sorted(missing)}"
    assert {case.kind.__name__ for case in CASES.values()} == set(CASES)
    assert all(issubclass(case.kind, Sink) for case in CASES.values())


def test_check_leaves_nothing_behind(case, tmp_path):
    check_leaves_nothing(case, tmp_path)


def test_records_come_back_in_order_and_whole(case, tmp_path):
    check_records(case, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_what_is_settled_is_there(name, tmp_path):
    check_settles(CASES[name], tmp_path)


def test_it_may_be_closed_twice(case, tmp_path):
    check_closes(case, tmp_path)


def test_what_comes_too_early_or_too_late_changes_nothing(lasting, tmp_path):
    check_late_writes(lasting, tmp_path)


@pytest.mark.parametrize("after", [0, 2, 5, 7])
def test_a_run_goes_on_with_it(lasting, after, tmp_path):
    check_goes_on(lasting, tmp_path, after=after)


def test_a_run_begins_anew_with_it(lasting, tmp_path):
    check_begins_anew(lasting, tmp_path)


def test_it_finishes(case, tmp_path):
    check_finishes(case, tmp_path, final=final_of)


@pytest.mark.parametrize("name", CASES)
def test_a_place_that_cannot_be_is_said_by_check(name, tmp_path):
    check_says_early(CASES[name], tmp_path)


@pytest.mark.parametrize("name", ["StoreSink", "RankRowsSink"])
def test_the_durable_step_is_what_another_reader_finds(name, tmp_path):
    case = CASES[name]
    sink = case.make(tmp_path, "create")
    store = sink if name == "StoreSink" else sink.store
    assert store.durable_step is None, "before open()"
    sink.check()
    sink.open(LAYOUT)
    assert store.durable_step is None, "before the first record"
    last = -1
    for step in STEPS:
        sink.write(record(step))
        durable = store.durable_step
        assert durable is None or last <= durable <= step
        assert sink.settle(seconds=SECONDS)
        assert store.durable_step == step
        assert open_store(store.path).steps[-1] == step
        last = step
    sink.close()
    assert store.durable_step == STEPS[-1]
    gone_on = begun(case, tmp_path, mode="resume", after=2)
    assert (gone_on if name == "StoreSink" else gone_on.store).durable_step == 2, "before it has a record of its own"
    gone_on.close()


def test_a_record_of_which_a_rank_owes_its_rows_is_not_durable(tmp_path):
    sink = TwoRanks(tmp_path, "create")
    sink.open(LAYOUT)
    sink.write(record(0))
    assert sink.settle(seconds=SECONDS)
    late = record(2)
    sink.store.write(replace(late, snapshot=late.snapshot[:CUT], rows=(0, CUT)))
    assert sink.settle(seconds=0.2) is False
    assert sink.store.durable_step == 0
    sink.rows.write(replace(late, snapshot=late.snapshot[CUT:], rows=(CUT, VOCAB)))
    assert sink.settle(seconds=SECONDS)
    assert sink.store.durable_step == 2
    sink.close()
    check_kept(CASES["RankRowsSink"], of_store(tmp_path, sink), (0, 2), why="the late rows came")


def test_finish_writes_what_is_queued_however_far_the_fold_is_behind(tmp_path, monkeypatch):
    journal, finishing = StoreWriter.journal, threading.Event()

    def late(writer, *record, **how):
        finishing.wait(SECONDS)
        return journal(writer, *record, **how)

    monkeypatch.setattr(StoreWriter, "journal", late)
    monkeypatch.setattr(background, "STALL_SECONDS", 1.0)
    sink = StoreSink(tmp_path / "run.zarr")
    sink.open(LAYOUT)
    for step in range(3 * LAYOUT.block):
        sink.write(record(step))
    # as an order of finish() that comes while all of them are queued
    monkeypatch.setattr(sink._writer, "_carried_out", released(sink._writer._carried_out, finishing))
    try:
        sink.finish({FINAL: np.ones((3 * LAYOUT.block, 2))})
        sink.close()
    finally:
        sink.leave()
    assert open_store(sink.path).complete


def released(carried_out, event):
    def carried(action, **how):
        event.set()
        return carried_out(action, **how)

    return carried
