"""What a checkpoint's name says: stage, step, tokens, seed, chunk. `step-240k-token-503B`, `stage2-step10`, `10B`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from trainhooks.checkpoints.weight_files import WEIGHT_SUFFIXES

BASE = "base"
"""What a stage without a name is called where one is asked for."""
IN_A_MANIFEST = ("manifest",)
"""The form of a row, which gives its numbers by itself."""
MOST_DIGITS = 18  # a store counts in int64
MOST_CHARACTERS = 400

SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12, "mt": 10**6, "bt": 10**9, "tt": 10**12}
STEPS = {"step", "steps", "globalstep", "iter", "iters", "iteration", "iterations", "ba", "update", "updates"}
SAVES = {"checkpoint", "checkpoints", "ckpt", "ckpts", "chck", "chkpt", "save", "snapshot"}
TOKENS = {"token", "tokens", "tok", "toks", "words"}
TRAINED = {"train", "trained", "at", "after", "consumed"}
CHUNKS = {"chunk", "chunks"}
EPOCHS = {"epoch", "epochs", "ep"}
SEEDS = {"seed", "seeds"}
NUMBERED = {"stage", "phase", "ingredient"}
LATER = {
    "ext", "extension", "longctx", "longcontext", "lc", "decay", "anneal", "annealing", "annealed", "cooldown",
    "midtrain", "midtraining",
}  # fmt: skip
"""Words for what comes after the main part of a training."""
NO_STEPS = {
    "of", "rank", "layer", "shard", "mp", "pp", "tp", "dp", "zero", "fsdp", "rng", "optim", "optimizer", "scheduler",
    "consolidated", "v", "ver", "version", "rev", "revision", "r", "pr", "fp", "bf", "int", "uint", "float", "bit",
    "bits", "nf", "q", "gguf", "lora", "run", "runs", "exp", "experiment", "trial", "fold", "worker", "gpu", "node",
    "task", "job", "lr", "bs", "size", "dim", "width", "depth", "vocab",
}  # fmt: skip
"""Words whose number is no time; a name with one of them is read only where another word says which number is."""
OF_A_RUN = {
    "v", "ver", "version", "run", "runs", "exp", "experiment", "trial", "fold", "fp", "bf", "lr", "bs", "width",
    "depth", "dim",
}  # fmt: skip
"""Of these words those whose number tells runs apart."""

_ATOM = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>(?:[KMBTkmbt]|[MBTmbt]T|[MBTmbt]t)(?![^\W\d_]))?|(?P<word>[^\W\d_]+)"
)
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CUT = re.compile(r"[eE][0-9]|,[0-9]")  # behind a number that goes on: 1e6; 12,000
_TWIN = re.compile(r"(.*)-v([0-9]{1,4})")


@dataclass(frozen=True)
class ParsedName:
    """What was read: `step` and `tokens` (thousands and billions multiplied out), `stage` ("" where none is named;
    "stage2-ingredient1"), `seed`, `chunk` of data, and `version`, Lightning's -v1 for a file saved again.

    `form` is what names of one kind share: words without numbers, stage, seed and tokens; `sure` says that a word of
    the name tells which number is the step. `span` is where in the name the number stands that orders it.
    """

    form: tuple[str, ...]
    step: int | None = None
    tokens: int | None = None
    stage: str = ""
    seed: str = ""
    chunk: int | None = None
    version: int = 0
    sure: bool = True
    span: tuple[int, int] = (0, 0)


class _Atom(NamedTuple):
    """A word, or a number with its unit, and where it stands."""

    word: str
    number: str
    unit: str
    start: int
    end: int

    @property
    def value(self) -> int | None:
        """The number multiplied out; None where it is no whole number that a store can hold."""
        if len(self.number) > MOST_DIGITS or not (self.whole or self.unit):
            return None
        whole, _, part = self.number.partition(".")
        scaled = int(whole + part) * SCALE[self.unit]
        found, left = divmod(scaled, 10 ** len(part))
        return found if not left and found < 2**63 else None

    @property
    def whole(self) -> bool:
        return "." not in self.number


def parse_name(name: str) -> ParsedName | None:
    """What a checkpoint's name says (a branch, a tag, a folder, a file); None where no number in it orders it.

    Numbers go by the word before them, or right after (`1000step`, `240b_tokens`). A number with B or T, or M after
    a word for saving, counts tokens; K and M after a word for steps multiply. One number alone is the step, unless its
    word says that it is something else (`v2`, `rank0`, `fp32`, `7B` behind a model's name).
    """
    stem = stem_of(name)
    if len(stem) > MOST_CHARACTERS or _COMMIT.fullmatch(stem):
        return None
    twin = _TWIN.fullmatch(stem) if "=" in stem else None
    atoms = _atoms(twin[1] if twin else stem)
    return _Reading(stem, atoms).result(version=int(twin[2]) if twin else 0)


def stem_of(name: str) -> str:
    """The name without a weight file's suffix."""
    return next((name.removesuffix(suffix) for suffix in WEIGHT_SUFFIXES if name.endswith(suffix)), name)


def _atoms(text: str) -> list[_Atom]:
    return [
        _Atom((m["word"] or "").lower(), m["number"] or "", (m["unit"] or "").lower(), m.start(), m.end())
        for m in _ATOM.finditer(text)
    ]


class _Reading:
    """One name's atoms, given their meaning from left to right."""

    def __init__(self, stem: str, atoms: list[_Atom]) -> None:
        self._stem, self._atoms = stem, atoms
        self._form: list[str] = []
        self._stage: list[str] = []
        self._seed: list[str] = []
        self._steps: list[_Atom] = []
        self._saves: list[_Atom] = []
        self._tokens: list[_Atom] = []
        self._chunks: list[_Atom] = []
        self._epochs: list[_Atom] = []
        self._others: list[_Atom] = []
        self._vetoed = False
        place = 0
        while place < len(atoms):
            place = self._take(place)

    def _take(self, at: int) -> int:
        """Understand the atom there, with those that belong to it; where to go on."""
        atom = self._atoms[at]
        if atom.number:
            return self._number(at, label="")
        if atom.word in SEEDS:
            return self._whole_seed(at + 1)
        follows = self._atoms[at + 1] if at + 1 < len(self._atoms) else None
        if atom.word in NUMBERED and follows is not None and follows.number and follows.whole and not follows.unit:
            self._stage.append(f"{atom.word}{int(follows.number[:MOST_DIGITS])}")
            return at + 2
        if atom.word in LATER:
            self._stage.append(atom.word)
            if self._is_range(at + 1):
                self._stage.append(self._stem[self._atoms[at + 1].start : self._atoms[at + 3].end])
                return at + 4
        elif atom.word not in TOKENS:
            self._form.append(atom.word)
        if follows is None or not follows.number or (atom.word in STEPS and self._belongs_left(at)):
            return at + 1
        return self._number(at + 1, label=atom.word)

    def _belongs_left(self, at: int) -> bool:
        """Whether a step's word has its number glued before it (`1000step`)."""
        return at > 0 and bool(self._atoms[at - 1].number) and self._atoms[at - 1].end == self._atoms[at].start

    def _is_range(self, at: int) -> bool:
        """Whether `4k-to-32k` stands there."""
        three = self._atoms[at : at + 3]
        return len(three) == 3 and bool(three[0].number) and three[1].word == "to" and bool(three[2].number)

    def _whole_seed(self, at: int) -> int:
        """A seed's name goes to its number, or to the next word that is known for something else."""
        known = STEPS | SAVES | TOKENS | NUMBERED | CHUNKS | EPOCHS
        while at < len(self._atoms) and self._atoms[at].word not in known:
            atom = self._atoms[at]
            self._seed.append(atom.word or atom.number + atom.unit)
            at += 1
            if atom.number:
                break
        return at

    def _number(self, at: int, *, label: str) -> int:
        """A number and the word that it goes by."""
        atom = self._atoms[at]
        follows = self._atoms[at + 1].word if at + 1 < len(self._atoms) else ""
        glued = bool(follows) and self._atoms[at + 1].start == atom.end
        if label in CHUNKS:
            self._chunks.append(atom)
        elif label in TOKENS or (follows in TOKENS and label not in STEPS):
            self._tokens.append(atom)
        elif label in STEPS or (glued and follows in STEPS):
            self._steps.append(atom)
        elif self._counts_tokens(atom, label):
            self._tokens.append(atom)
        elif label in SAVES or label in LATER:
            self._saves.append(atom)
        elif label in EPOCHS:
            self._epochs.append(atom)
        else:
            self._vetoed |= label in NO_STEPS or (glued and follows in NO_STEPS)
            size = atom.unit not in ("", "k")  # a model's
            self._form.append(f"{atom.number}{atom.unit}" if size or label in OF_A_RUN else "#")
            self._others += [] if size else [atom]
        return at + 1

    def _counts_tokens(self, atom: _Atom, label: str) -> bool:
        """Whether a number with a unit counts tokens, and is no model's size (`1.1B-intermediate-step`)."""
        unit = atom.unit
        if not unit or unit == "k":
            return False
        alone = len(self._atoms) == 1
        told = alone or label in SAVES or label in TRAINED or bool(self._steps or self._saves)
        return unit.startswith("t") or unit.endswith("t") or told

    def result(self, *, version: int) -> ParsedName | None:
        """What orders the name: a step, a saved number, tokens, a chunk, or the only number that is left."""
        step, sure = self._one(self._steps), True
        if step is None and len(self._saves) == 1:
            step = self._saves[0]
        tokens, chunk = self._one(self._tokens), self._one(self._chunks)
        if step is None and tokens is None and chunk is None:
            step = self._one(self._epochs)
        if step is None and tokens is None and chunk is None:
            if self._vetoed or len(self._others) != 1:
                return None
            step, sure = self._others[0], len(self._atoms) == 1
        if any(atom is not None and (atom.value is None or self._goes_on(atom)) for atom in (step, tokens, chunk)):
            return None
        orders = step or tokens or chunk
        assert orders is not None
        return ParsedName(
            form=("step=N",) if "step=" in self._stem else tuple(self._form),
            step=None if step is None else step.value,
            tokens=None if tokens is None else tokens.value,
            stage="-".join(self._stage),
            seed="-".join(self._seed),
            chunk=None if chunk is None else chunk.value,
            version=version,
            sure=sure,
            span=(orders.start, orders.end),
        )

    def _goes_on(self, atom: _Atom) -> bool:
        """Whether the number is a piece of one (`1e6`), or a count before another: `checkpoint_EPOCH_STEP`."""
        at = self._atoms.index(atom)
        before = self._atoms[at - 2] if at > 1 else None
        exponent = before is not None and before.number and self._stem[before.end : atom.start].lower() == "e"
        follows = self._atoms[at + 1] if at + 1 < len(self._atoms) else None
        pair = follows is not None and follows.number and not follows.unit and atom in self._saves + self._epochs
        return bool(exponent or pair or _CUT.match(self._stem, atom.end))

    @staticmethod
    def _one(atoms: list[_Atom]) -> _Atom | None:
        return atoms[-1] if atoms else None
