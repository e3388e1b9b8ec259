"""What `plan()` announces, against what a process of its own takes; no clock decides anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trainhooks as th
from trainhooks.numerics.sketch import Sketcher
from trainhooks.recording.plan import Plan, _record_and_folds, advice, all_bytes, host_measuring_bytes, working_bytes
from trainhooks.store import Layout
from trainhooks.store.maintenance.planning import fold_bytes, matrix_fold_bytes, row_fold_bytes

RUN = """
import json, re, sys, threading
from pathlib import Path

import torch
from torch import nn

import trainhooks as th
from trainhooks.store import chunks
from trainhooks.store.labour import Labour
from trainhooks.store.writer import StoreWriter

VOCAB, DIM, RECORDS = 8192, 128, 39
settings = {} if sys.argv[2] == "defaults" else {"metrics": []}
full = sys.argv[2] == "full"
torch.manual_seed(0)
torch.set_num_threads(1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lm_head = nn.Embedding(VOCAB, DIM), nn.Linear(DIM, VOCAB, bias=False)

    def forward(self, tokens):
        return self.lm_head(self.embedding(tokens))


def anonymous():
    return 1000 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])


def look():
    global most
    most = max(most, anonymous())


def looking(plain):
    def function(*args, **kwargs):
        look()
        result = plain(*args, **kwargs)
        look()
        return result
    return function


model = Model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
tokens = torch.randint(0, VOCAB, (2, 8))


def update(recorder=None):
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    optimizer.zero_grad()
    loss.backward()
    if recorder:
        recorder.before_update()
    optimizer.step()
    if recorder:
        recorder.after_update(loss=loss.detach())


update()
writing = th.Writing(queue_bytes=64 << 20, backpressure="drop" if full else "block")
counts = torch.arange(1, VOCAB + 1).numpy()
recorder = th.Recorder(model, store=sys.argv[1], counts=counts, total_steps=RECORDS, writing=writing, **settings)
plan = recorder.plan()
gate, journal = threading.Event(), StoreWriter.journal
StoreWriter.journal = lambda *args, **kwargs: (gate.wait(), journal(*args, **kwargs))[1]
Labour.begin_tile = looking(Labour.begin_tile)
chunks.sealed, chunks.read_chunk = looking(chunks.sealed), looking(chunks.read_chunk)
most = before = anonymous()
with recorder:
    for number in range(RECORDS):
        recorder.begin_step(tokens)
        if not full or recorder._sink_group.store.dropped:  # the queue is full: nothing was written yet
            look()
            gate.set()
        update(recorder)
        if gate.is_set():
            recorder._sink_group.store.settle(seconds=500)
        look()
look()
named = ("host_bytes", "device_bytes", "queue_bytes")
print(json.dumps({"said": {name: getattr(plan, name) for name in named}, "taken": most - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is not here")
@pytest.mark.parametrize("kind", ["defaults", "bare", "full"])
def test_memory_stays_below_what_is_announced_and_not_far_below(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, str(tmp_path / "s.zarr"), kind],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    said, taken = found["said"], found["taken"]
    announced = said["host_bytes"] + said["device_bytes"]  # the model is on the host
    assert taken <= announced
    assert said["queue_bytes"] == 64 << 20
    used, most = (announced, 3) if kind == "full" else (announced - said["queue_bytes"], 2.5)
    assert used <= most * taken, found  # allocators differ; 1.2 to 1.8 where this was measured, 2.6 with a full queue


def test_no_more_waits_than_the_run_has_records():
    layout = Layout(vocab=100, dim=4, groups=("a",), sketch_size=8)
    assert all_bytes(layout, records=5, snapshots=2) == 5 * 4 * 8 + 2 * 100 * (4 * 4 + 8)


def test_what_fills_no_block_is_folded_when_nothing_is_measured():
    layout, matrix = Layout(vocab=4096, dim=512, groups=("a",), sketch_size=8), 4 * 4096 * 512
    fold, of_matrices = fold_bytes(layout, threads=1), matrix_fold_bytes(layout, threads=1)

    def host(records, snapshots, *, threads=1):
        sizes = {"record_bytes": 2 * matrix, "threads": threads}
        return _record_and_folds(layout, records=records, snapshots=snapshots, **sizes)

    few = of_matrices + row_fold_bytes(layout, records=layout.block - 1)
    assert host(10**6, layout.block) == host(None, None) == 2 * matrix + fold
    assert host(layout.block - 1, layout.block - 1) == few > 2 * matrix, "one after the other: the larger counts"
    assert host(10**6, 5) == max(2 * matrix + fold - of_matrices, fold), "matrices at the end, numbers on the way"
    assert few < fold, "chunks of a short run hold little"
    assert host(5, 5, threads=4) > host(5, 5), "each thread holds chunks of its own"


def test_products_of_a_wide_embedding_are_announced_on_the_host():
    metrics = th.default_metrics(torch.arange(1, 4097).numpy())
    wide, narrow = torch.zeros(4096, 2048), torch.zeros(4096, 16)
    assert host_measuring_bytes(metrics, weight=wide) == 8 * (30 * 2048**2 + 90 * 4096)
    assert host_measuring_bytes([], weight=wide) == wide.nbytes
    assert host_measuring_bytes([], weight=narrow) == narrow.nbytes
    assert host_measuring_bytes(metrics, weight=wide.to("meta")) == wide.nbytes, "its products are on a device"


def test_a_large_store_is_said_with_a_smaller_setting_beside_it():
    layout = Layout(50304, 768, ("whole",), 0)
    for records, snapshots in ((10_001, 10_001), (None, None)):
        said = advice(Plan(records, snapshots, 0, 0, 0), layout=layout)
        assert "up to 1.56 TB in 10000 updates: 10001 output embeddings of 50304 x 768 in float32" in said
        assert "Log-spaced ones in bfloat16 take 8.29 GB at most" in said
    assert advice(Plan(10_001, 20, 0, 0, 0), layout=layout) == "", "log-spaced already"
    assert advice(Plan(301, 301, 0, 0, 0), layout=Layout(8192, 256, ("whole",), 0)) == "", "small"


def test_buffers_on_a_device_are_said():
    counts = torch.arange(1, 50305).numpy()
    metrics = th.default_metrics(counts)
    wide = torch.empty(50304, 768, device="meta")
    sketcher = Sketcher({"whole": [("a", torch.zeros(3))]})
    each = {type(metric).__name__: metric.working_bytes(wide) for metric in metrics}
    lines = 4 * 50304 * 768  # fewer than the buffer has room for
    assert each["FrequencyProbe"] == lines + 2 * 12 * 5 * 768**2
    assert each["HeadGeometry"] == 3 * (4 * (1 << 24) + 8 * 768**2)
    assert each["Spectrum"] == each["GroupConvergence"] == 0
    assert working_bytes(metrics, sketcher, weight=wide) == max(each.values())
    assert working_bytes([], sketcher, weight=wide) == 4 * 18 << 20
    assert working_bytes([], None, weight=wide) == working_bytes(metrics, sketcher, weight=torch.zeros(4, 2)) == 0
    assert "72 MB of it while a record is measured" in str(Plan(1, 1, 0, 10**8, 0, working_bytes=72 * 10**6))
