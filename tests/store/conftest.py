"""A small run whose every record can be told from its step, and writers for it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from trainhooks.core.variable import Variable
from trainhooks.store import Layout, StoreWriter

VOCAB, DIM, GROUPS, SKETCH = 70, 3, ("embedding", "block.0"), 5
VARIABLES = (
    Variable("probe.heldout_spearman", description="rank correlation"),
    Variable("convergence.norm", dims=("group",), dtype="float32", unit="norm"),
    Variable("count.updates", dtype="int64", unit="update"),
    Variable("spectrum.top", dims=("rank",), sizes={"rank": 2}),
    Variable("convergence.cosine_to_final", dims=("group",), whole_run=True),
)


@dataclass(frozen=True)
class Run:
    """What record `step` holds; deterministic, different at every step, smooth enough to be told apart."""

    layout: Layout
    snapshot_every: int = 1

    def values(self, step: int) -> dict[str, np.ndarray | float]:
        values = {
            "probe.heldout_spearman": step / 128,
            "convergence.norm": np.array([step, -step], dtype=np.float32),
            "count.updates": step,
            "spectrum.top": np.array([step + 0.5, 0.5]),
        }
        # every fifth record was off some metric's schedule
        return values if step % 5 else {"count.updates": step}

    def sketch(self, step: int) -> np.ndarray:
        return np.random.default_rng([1, step]).standard_normal((len(GROUPS), SKETCH)).astype(np.float32)

    def matrix(self, step: int) -> np.ndarray:
        shape = (self.layout.vocab, self.layout.dim)
        return np.random.default_rng([2, step]).standard_normal(shape).astype(np.float32)

    def counts(self, step: int) -> np.ndarray:
        return np.arange(self.layout.vocab) * (step + 1)

    def has_snapshot(self, step: int) -> bool:
        return self.layout.snapshots and step % self.snapshot_every == 0

    def append(self, writer: StoreWriter, steps: Iterable[int]) -> None:
        for step in steps:
            writer.append(
                step,
                self.values(step),
                sketch=self.sketch(step),
                snapshot=self.matrix(step) if self.has_snapshot(step) else None,
                label_counts=self.counts(step),
            )


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A file descriptor for each sync, of a file or a folder; syncing itself would only make the tests wait."""
    descriptors: list[int] = []
    monkeypatch.setattr("trainhooks.store.storage.local.sync", descriptors.append)
    return descriptors


@pytest.fixture(autouse=True)
def no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sign of life by the clock: on a slow machine it would put a file among those that tests count."""
    monkeypatch.setattr("trainhooks.store.storage.lock.HEARTBEAT_SECONDS", 3600.0)


@pytest.fixture
def layout() -> Layout:
    return Layout(
        vocab=VOCAB,
        dim=DIM,
        groups=GROUPS,
        sketch_size=SKETCH,
        variables=VARIABLES,
        precision="float32",
        attributes={"seed": 3, "model": {"layers": 2}},
        token_count=np.arange(VOCAB),
        token_text=["\x00", "a\x00", "é", " the", *(f"t{i}" for i in range(4, VOCAB))],
    )


@pytest.fixture
def run(layout: Layout) -> Run:
    return Run(layout)


@pytest.fixture
def sparse_run(layout: Layout) -> Run:
    """Blocks of 4 and a snapshot at every third step, so that both are folded at their own pace."""
    return Run(replace(layout, block=4), snapshot_every=3)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the first records of a run; closed or left as a killed run leaves it."""

    def write(run: Run, *, records: int, close: bool = True, name: str = "run.zarr") -> Path:
        writer = StoreWriter(tmp_path / name, run.layout)
        run.append(writer, range(records))
        if close:
            writer.close()
        return writer.path

    return write
