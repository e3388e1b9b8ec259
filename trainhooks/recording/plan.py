"""What a run will take, in bytes, known and checked before its first step."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from trainhooks.core.formatting import human
from trainhooks.core.schedule import LogSpaced, Schedule, Thinned, in_words
from trainhooks.metrics.base import Metric, kept_heads
from trainhooks.model.distributed import is_sharded
from trainhooks.numerics.sketch import Sketcher
from trainhooks.numerics.sketch_on_device import STAGING_BYTES
from trainhooks.recording.staging import (
    ALIGNMENT,
    RECORDS_AT_ONCE,
    SLOTS,
    BlockingStager,
    CudaStreams,
    PinnedStager,
    Stager,
)
from trainhooks.store import Layout, required_bytes
from trainhooks.store.format.precision import BFLOAT16_MANTISSA_BITS
from trainhooks.store.maintenance.planning import block_bytes, matrix_fold_bytes, row_fold_bytes

REFERENCE_SHARE = 1 / 16
REFERENCE_VARIABLE = "TRAINHOOKS_REFERENCE_BYTES"
FEW_BYTES = 1 << 18  # what a metric sends beside its variables and can still wait with other records
LARGE_BYTES = 20 * 10**9
"""A store that takes more is said with a smaller setting beside it."""
USUAL_STEPS = 10_000
_STORE_BYTES = 88 << 20
"""Modules that are loaded when a store is made, and freed memory that the allocator keeps; 36 to 94 MB were seen."""


@dataclass(frozen=True)
class Plan:
    """Records and snapshots a run will make, and the most bytes it takes on disk, on the device and on the host.

    `records` and `snapshots` are None where the run's length is not known; `disk_bytes` then stands for one block.
    `gathered_bytes` are those of `device_bytes` that a sharded output embedding takes while a record gathers it,
    `pinned_bytes` those of `host_bytes` that a GPU writes into: they cannot be swapped out.

    `host_bytes` is memory of the process' own (anonymous) beyond what it had before its first record: the fold of a
    block and the end of the run are in it, and what a store loads. `queue_bytes` of them fill only where the disk is
    slower than training. `device_bytes` of a model on the CPU come on top. `mapped_bytes` is no such memory: files that
    are mapped while they are read, a block of the journal or all sketches. The system shows them among the process'
    resident memory, and takes them back at need. `fewer` has the metrics that are in fewer records: in how many, or
    when, where the run's length is not known.
    """

    records: int | None
    snapshots: int | None
    disk_bytes: int
    device_bytes: int
    host_bytes: int
    gathered_bytes: int = 0
    pinned_bytes: int = 0
    mapped_bytes: int = 0
    queue_bytes: int = 0
    reference_bytes: int = 0
    working_bytes: int = 0
    fewer: Mapping[str, int | str] = field(default_factory=dict)

    def __str__(self) -> str:
        length = "unknown length, a first block" if self.records is None else f"{self.records} records"
        there = [f"{human(self.gathered_bytes)} of it gathered from shards"] if self.gathered_bytes else []
        there += [f"{human(self.reference_bytes)} of it to compare with"] if self.reference_bytes else []
        there += [f"{human(self.working_bytes)} of it while a record is measured"] if self.working_bytes else []
        gathered = f" ({', '.join(there)})" if there else ""
        parts = [f"{human(self.pinned_bytes)} of it pinned"] if self.pinned_bytes else []
        parts += [f"{human(self.queue_bytes)} of it only where the disk is slower"] if self.queue_bytes else []
        host = f" ({', '.join(parts)})" if parts else ""
        mapped = f", beside {human(self.mapped_bytes)} of mapped files that can be dropped" if self.mapped_bytes else ""
        return (
            f"{length}: at most {human(self.disk_bytes)} on disk, {human(self.device_bytes)} on the model's "
            f"device{gathered} and {human(self.host_bytes)} of host memory{host}{mapped}{self._sparser()}"
        )

    def _sparser(self) -> str:
        """Which metrics are in fewer records than there are."""
        alike: dict[int | str, list[str]] = {}
        for name, times in self.fewer.items():
            alike.setdefault(times, []).append(name)
        said = [
            f"{', '.join(names)} {f'in {times} of them' if isinstance(times, int) else f'by {times}'}"
            for times, names in alike.items()
        ]
        return f"; {'; '.join(said)}" if said else ""


def plan_run(
    schedules: Mapping[str, Schedule],
    *,
    total_steps: int | None,
    layout: Layout | None,
    matrix_bytes: int,
    measuring_bytes: int,
    staging_plan: StagingPlan,
    sketch_bytes: int,
    kept: Sequence[Mapping[str, int]],
    queue_bytes: int = 0,
    fold_threads: int = 1,
    gathered_bytes: int = 0,
    working_bytes: int = 0,
) -> Plan:
    """The plan of a run. `schedules` by what they are of, "records" and "snapshots" among them.

    `layout` is None without a store. `matrix_bytes` of one float32 output embedding, `measuring_bytes` of the host's
    memory while a record is measured, `staging_plan` is what moves to the host and what is kept of it, `sketch_bytes`
    of one record's sketches; `kept` is what each metric keeps on "device" and "host", `queue_bytes` has room for
    records that wait for the store's writer, in which `fold_threads` compress, `gathered_bytes` of a sharded output
    embedding, `working_bytes` of buffers on a device while a record is measured.

    Raises ValueError where a schedule never fires.
    """
    fires = {
        what: count_firings(schedule=schedule, total_steps=total_steps, what=what)
        for what, schedule in schedules.items()
    }
    records, snapshots = fires["records"], fires["snapshots"]
    if layout is not None and records is not None and snapshots is not None:  # no more can wait than there are
        queue_bytes = min(queue_bytes, all_bytes(layout, records=records, snapshots=snapshots))
    return Plan(
        records=records,
        snapshots=snapshots,
        disk_bytes=0 if layout is None else disk_bytes(layout, records=records, snapshots=snapshots),
        gathered_bytes=gathered_bytes,
        working_bytes=working_bytes,
        device_bytes=gathered_bytes
        + working_bytes
        + staging_plan.device_bytes
        + 3 * sketch_bytes
        + sum(one.get("device", 0) for one in kept),
        pinned_bytes=staging_plan.pinned_bytes,
        reference_bytes=staging_plan.reference_bytes,
        queue_bytes=queue_bytes,
        fewer={
            what: in_words(schedules[what]) if times is None else times
            for what, times in fires.items()
            if what not in ("records", "snapshots") and (times is None or records is None or times < records)
        },
        host_bytes=staging_plan.pinned_bytes
        + queue_bytes
        + (
            measuring_bytes + sketch_bytes * (records or 1)
            if layout is None
            else _STORE_BYTES
            + _record_and_folds(
                layout,
                record_bytes=measuring_bytes + matrix_bytes,
                threads=fold_threads,
                records=records,
                snapshots=snapshots,
            )
        )
        + sum(one.get("host", 0) for one in kept),
        mapped_bytes=0 if layout is None else max(block_bytes(layout), sketch_bytes * (records or layout.block)),
    )


def _record_and_folds(
    layout: Layout, *, record_bytes: int, threads: int, records: int | None, snapshots: int | None
) -> int:
    """The most bytes of a record that is measured and written beside the folds that go on meanwhile, or of the last.

    What fills no block is folded at the end, when nothing is measured any more.
    """
    of_matrices, of_rows = matrix_fold_bytes(layout, threads=threads), row_fold_bytes(layout, records=records)
    meanwhile = of_matrices if snapshots is None or snapshots >= layout.block else 0
    meanwhile += of_rows if records is None or records >= layout.block else 0
    return max(record_bytes + meanwhile, of_matrices + of_rows)


def advice(plan: Plan, *, layout: Layout) -> str:
    """What to set where a store grows large, with the bytes that it would take then; empty where it does not.

    Of a run whose length is not known the bytes of `USUAL_STEPS` updates are said.
    """
    steps = USUAL_STEPS if plan.records is None else plan.records - 1
    snapshots = steps + 1 if plan.snapshots is None else plan.snapshots
    full = disk_bytes(layout, records=steps + 1, snapshots=snapshots)
    fewer = LogSpaced().count(steps)
    if full < LARGE_BYTES or not layout.snapshots or fewer >= snapshots:
        return ""
    small = disk_bytes(replace(layout, precision="bfloat16"), records=steps + 1, snapshots=fewer)
    return (
        f"the store takes up to {human(full)} in {steps} updates: {snapshots} output embeddings of {layout.vocab} x "
        f"{layout.dim} in {layout.precision}. Log-spaced ones in bfloat16 take {human(small)} at most, all figures "
        'of every record: snapshot_schedule=th.LogSpaced(), precision="bfloat16".'
    )


def count_firings(*, schedule: Schedule, total_steps: int | None, what: str) -> int | None:
    """How often a schedule fires in steps 0 ... total_steps; None where the length is not known.

    Raises ValueError where it never fires; a `Thinned` one need not, which asks for no record of its own.
    """
    if total_steps is None:
        return None
    fires = schedule.count(total_steps)
    if fires == 0 and not isinstance(schedule, Thinned):
        raise ValueError(
            f"the schedule of {what}, {schedule}, never fires in steps 0 ... {total_steps}. "
            "Pass one that does, such as EveryStep() or LogSpaced()."
        )
    return fires


def disk_bytes(layout: Layout, *, records: int | None, snapshots: int | None) -> int:
    """The most bytes a store of this layout takes; for one block where the run's length is not known."""
    return required_bytes(
        layout,
        records=layout.block if records is None else records,
        snapshots=layout.block if snapshots is None else snapshots,
    )


def all_bytes(layout: Layout, *, records: int, snapshots: int) -> int:
    """A run's records as they are given to the store."""
    values = sum(8 * math.prod(layout.row_shape(variable)) for variable in layout.variables)
    sketch = 4 * len(layout.groups) * layout.sketch_size
    return records * (values + sketch) + snapshots * layout.vocab * (4 * layout.dim + 8)


def check_disk(path: Path, *, needed: int, force: bool) -> None:
    """Refuse (OSError, with bytes needed and free) a store that does not fit; `force` lets it pass."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    # a store that is there is overwritten or gone on with: what it takes comes back, or is done already
    needed -= sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free and not force:
        raise OSError(
            f"the store {path} needs up to {needed} bytes ({human(needed)}); {folder} has {free} bytes "
            f"({human(free)}) free. Free space, take fewer snapshots (snapshot_schedule=), lower "
            'precision="bfloat16", or pass force=True.'
        )


def reference_limit(device: torch.device) -> int:
    """Bytes of a device's memory that matrices to compare with may hold between records: `REFERENCE_SHARE` of all.

    The environment's TRAINHOOKS_REFERENCE_BYTES says another number; 0 keeps them on the host. Raises ValueError where
    that is no whole number.
    """
    said = os.environ.get(REFERENCE_VARIABLE)
    if said is not None and not said.strip().isdecimal():
        raise ValueError(f"{REFERENCE_VARIABLE} is {said!r}: give bytes as a whole number, 0 for none on the device.")
    if said is not None:
        return int(said)
    if device.type != "cuda":
        return 0
    return int(REFERENCE_SHARE * torch.cuda.get_device_properties(device).total_memory)


def staging_plan(layout: Layout, *, weight: Tensor, metrics: Sequence[Metric]) -> StagingPlan:
    """What records of this layout and output embedding are in bytes; `metrics` say what is kept of it."""
    values = sum(math.prod(layout.row_shape(variable)) for variable in layout.variables if not variable.whole_run)
    numbers = values + len(layout.groups) * layout.sketch_size + layout.vocab + 1  # label counts; those beyond
    sent = [metric.sent_bytes(weight) for metric in metrics]
    few = sum(size for size in sent if size <= FEW_BYTES)
    return StagingPlan(
        device=weight.device,
        vocab=layout.vocab,
        dim=layout.dim,
        stored=torch.bfloat16 if layout.kept_bits == BFLOAT16_MANTISSA_BITS else torch.float32,
        kept_copies=kept_heads(need for metric in metrics for need in metric.needs),
        unbatched_bytes=sum(sent) - few,
        record=8 * numbers + few,
        reference_limit=reference_limit(weight.device),
        sharded=is_sharded(weight),
    )


def working_bytes(metrics: Sequence[Metric], sketcher: Sketcher | None, *, weight: Tensor) -> int:
    """The most bytes of buffers on the device of `weight` while a record is measured, one part after the other.

    0 on the host, see `host_measuring_bytes`.
    """
    if weight.device.type == "cpu":
        return 0
    sketching = 0 if sketcher is None else STAGING_BYTES
    return max([sketching, *(metric.working_bytes(weight) for metric in metrics)])


def host_measuring_bytes(metrics: Sequence[Metric], *, weight: Tensor) -> int:
    """The most bytes of the host's memory while a record is measured: a copy of the matrix, or what a metric says."""
    on_host = metrics if weight.device.type == "cpu" else ()
    return max([4 * weight.numel(), *(metric.working_bytes(weight) for metric in on_host)])


@dataclass(frozen=True)
class StagingPlan:
    """What one run sends over the stager of `device`, in bytes: known before it begins.

    The output embedding is `vocab` x `dim`, stored as `stored`; `kept_copies` of it (float32) are compared with later
    ones, on a GPU where they take no more than `reference_limit` bytes of it; `record` bytes are all else that a record
    holds, and `unbatched_bytes` more those that do not wait for other records. Of a `sharded` one ranks may store rows
    of their own beside the whole that they compare.
    """

    device: torch.device
    vocab: int
    dim: int
    stored: torch.dtype
    kept_copies: int
    record: int
    unbatched_bytes: int = 0
    sharded: bool = False
    reference_limit: int = 0

    @property
    def copy_dtype(self) -> torch.dtype:
        """What the point-in-time copy is made in: as it is stored, but float32 where it is kept for comparison too."""
        return torch.float32 if self.kept_copies else self.stored

    @property
    def slot_bytes(self) -> int:
        """One slot of the ring."""
        together = RECORDS_AT_ONCE * (self.record + 4 * ALIGNMENT)
        return self.copy_dtype.itemsize * self._numbers + self.unbatched_bytes + together

    @property
    def device_bytes(self) -> int:
        """On the device: the copy in flight, what is kept (on a GPU: brought for a record), what waits to be sent."""
        copies = (
            self.copy_dtype.itemsize
            + (self.stored.itemsize if self.kept_copies and self.sharded else 0)
            + 4 * self.kept_copies
        )
        waiting = RECORDS_AT_ONCE * self.record + self.unbatched_bytes if self._pins else 0
        return copies * self._numbers + waiting

    @property
    def pinned_bytes(self) -> int:
        """Pinned on the host beside a GPU: the ring, and what is kept unless on the device; none elsewhere."""
        kept = 0 if self.keeps_on_device else 4 * self.kept_copies * self._numbers
        return SLOTS * self.slot_bytes + kept if self._pins else 0

    @property
    def keeps_on_device(self) -> bool:
        """Whether what is compared with stays on a GPU between records."""
        return self._pins and 4 * self.kept_copies * self._numbers <= self.reference_limit

    @property
    def reference_bytes(self) -> int:
        """Bytes of a GPU that hold what is compared with between records."""
        return 4 * self.kept_copies * self._numbers if self.keeps_on_device else 0

    @property
    def _numbers(self) -> int:
        return self.vocab * self.dim

    @property
    def _pins(self) -> bool:
        return self.device.type == "cuda"

    def stager(self) -> Stager:
        """The stager for it, its memory allocated."""
        return (
            PinnedStager(CudaStreams(self.device), slot_bytes=self.slot_bytes, keeps_on_device=self.keeps_on_device)
            if self._pins
            else BlockingStager(self.device)
        )
