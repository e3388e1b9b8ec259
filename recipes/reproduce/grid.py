"""The cells of the grid: one training run each, and which of them are the full grid, and which the quick one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Size:
    """A GPT-NeoX's shape and how long it is trained: `steps` updates of `batch` windows of `context` labels."""

    hidden: int
    layers: int
    heads: int
    context: int = 64
    batch: int = 16
    steps: int = 300


SIZES = {
    "small": Size(128, 4, 4),
    "large": Size(256, 6, 4),
    "quick": Size(64, 2, 2, context=32, batch=8, steps=40),
}
PYTHIA = {  # Biderman et al. 2023, arXiv 2304.01373; the smallest as long as the main cell, the others for a GPU
    "pythia-14m": Size(128, 6, 4),
    "pythia-70m": Size(512, 6, 8, context=512, batch=32, steps=1000),
    "pythia-160m": Size(768, 12, 12, context=512, batch=32, steps=1000),
    "pythia-410m": Size(1024, 24, 16, context=512, batch=32, steps=1000),
}
SIZES |= PYTHIA
MAIN_SEEDS, OTHER_SEEDS = 5, 3


@dataclass(frozen=True)
class Cell:
    """One run. Its name is that of its folder and of its kept results."""

    text: str  # english, code or shuffled (the ids of english in random order)
    vocab: int = 4096
    size: str = "small"
    tied: bool = False
    optimizer: str = "adamw"
    seed: int = 0

    @property
    def name(self) -> str:
        """Everything that tells it from the other cells, joined."""
        return f"{self.family}-{self.seed}"

    @property
    def family(self) -> str:
        """The name without the seed: what several seeds have in common."""
        head = "tied" if self.tied else "untied"
        return f"{self.text}-{self.vocab}-{self.size}-{head}-{self.optimizer}"


MAIN = Cell("english")
CODE = Cell("code")
OTHERS = {
    "ids in random order": replace(MAIN, text="shuffled"),
    "tied head": replace(MAIN, tied=True),
    "vocabulary of 16k": replace(MAIN, vocab=16384),
    "larger model": replace(MAIN, size="large"),
    "Muon with AdamW": replace(MAIN, optimizer="muon"),
}


def seeds(cell: Cell, number: int) -> list[Cell]:
    """The cell under the seeds 0 to `number` - 1."""
    return [replace(cell, seed=seed) for seed in range(number)]


def full() -> list[Cell]:
    """English and code with five seeds, then each factor changed alone with three: those that matter most first."""
    main = [cell for pair in zip(seeds(MAIN, MAIN_SEEDS), seeds(CODE, MAIN_SEEDS), strict=True) for cell in pair]
    return main + [cell for seed in range(OTHER_SEEDS) for cell in (replace(o, seed=seed) for o in OTHERS.values())]


def pythia(sizes: Sequence[str]) -> list[Cell]:
    """Shapes of Pythia, whose vocabulary has 50,304 rows, over three seeds."""
    return [cell for size in sizes for cell in seeds(Cell("english", vocab=50304, size=size), OTHER_SEEDS)]


def quick(*, english: bool) -> list[Cell]:
    """The same code in minutes: two seeds of one tiny model, and its ids in random order."""
    text = "english" if english else "code"
    small = Cell(text, vocab=512, size="quick")
    return [*seeds(small, 2), replace(small, text="shuffled")]
