"""Public suites with intermediate checkpoints, by name: how steps are named, what is known of their vocabulary.

Names were read in model cards, issues and code. A vocabulary stands here only where it is sure; None is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

_NEOX, _DOLMA1, _DOLMA2 = "EleutherAI/gpt-neox-20b", "allenai/gpt-neox-olmo-dolma-v1_5", "allenai/dolma2-tokenizer"


@dataclass(frozen=True)
class KnownSuite:
    """A family of repositories that fit one of the globs `ids`; `example` is one of them.

    `names` says how checkpoints are called. `stages` is the order in which they follow each other, `picks` (with
    `seed`) what the preset takes of runs beside each other, `by` what orders them. `ids_used` are the tokenizer's ids,
    `rows` the output embedding's (several by size), the rest of which is padding. `counts` says where token counts are,
    `note` what to know; `pattern` is a regular expression for names that are not read by themselves.
    """

    name: str
    ids: tuple[str, ...]
    names: str
    example: str
    sizes: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    picks: tuple[str, ...] = ()
    seed: str | None = None
    unit: str = "step"
    ids_used: int | None = None
    rows: tuple[int, ...] = ()
    tokenizer: str = ""
    counts: str = ""
    grid: str = ""
    note: str = ""
    pattern: str = ""

    @property
    def command(self) -> str:
        """The one command that analyses the example."""
        return f"trainhooks analyze {self.example} --preset {self.name} --counts counts.npz --out {self.name}.zarr"


_PYTHIA_ROWS = (50304, 50432, 50688)
_PILE = "published by the authors, in the order of the tokenizer's ids (trainhooks count --preset pythia checks them)"
_LARGE = ("7B", "13B", "32B")

KNOWN_SUITES = (
    KnownSuite(
        "pythia", ("EleutherAI/pythia-[0-9]*[mb]", "EleutherAI/pythia-[0-9]*[mb]-deduped"),
        "step0, step1, step2 ... step512, step1000 ...", "EleutherAI/pythia-160m",
        ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"),
        ids_used=50277, rows=_PYTHIA_ROWS, tokenizer=_NEOX, counts=_PILE, grid="pythia",
    ),
    KnownSuite(
        "polypythias", ("EleutherAI/pythia-*-seed[0-9]",), "as pythia; each seed is a repository",
        "EleutherAI/pythia-160m-seed1", ("14m", "31m", "70m", "160m", "410m"),
        ids_used=50277, rows=_PYTHIA_ROWS, tokenizer=_NEOX, counts=_PILE, grid="pythia",
    ),
    KnownSuite(
        "pythia-v0", ("EleutherAI/pythia-*-v0",), "step1000, step2000 ...", "EleutherAI/pythia-160m-v0",
        ids_used=50277, rows=_PYTHIA_ROWS, tokenizer=_NEOX, counts=_PILE,
    ),
    KnownSuite(
        "neox-pythia", ("EleutherAI/neox-ckpt-pythia-*",), "step1000 ..., in GPT-NeoX's files",
        "EleutherAI/neox-ckpt-pythia-160m-v1", ids_used=50277, rows=_PYTHIA_ROWS, tokenizer=_NEOX, counts=_PILE,
    ),
    KnownSuite(
        "deep-ignorance", ("EleutherAI/deep-ignorance-*",), "global_step1000 ...",
        "EleutherAI/deep-ignorance-pretraining-stage-unfiltered", ("6.9b",),
    ),
    KnownSuite("hubble", ("allegrolab/hubble-*-hf",), "step1000 ...", "allegrolab/hubble-1b-100b_toks-standard-hf"),
    KnownSuite(
        "olmo", ("allenai/OLMo-[17]B*",), "step1000-tokens4B", "allenai/OLMo-1B-hf", ("1B", "7B"),
        ids_used=50280, rows=(50304,), tokenizer=_DOLMA1,
    ),
    KnownSuite(
        "olmoe", ("allenai/OLMoE-*",), "step5000-tokens20B; main is annealed", "allenai/OLMoE-1B-7B-0924", ("1B-7B",),
        ids_used=50280, rows=(50304,), tokenizer=_DOLMA1,
    ),
    KnownSuite(
        "olmo2", ("allenai/OLMo-2-*",), "stage1-step1000-tokens5B, stage2-ingredient1-step1000-tokens5B",
        "allenai/OLMo-2-0425-1B", ("1B", *_LARGE), picks=("stage1",), ids_used=100278, rows=(100352,),
        tokenizer=_DOLMA2, note="the ingredients of stage 2 lie beside each other; one follows stage 1 with --stage "
        "stage1,stage2-ingredient1",
    ),
    KnownSuite(
        "olmo3", ("allenai/Olmo-3-*",), "stage1-step1000, stage2-step1000 (counts anew), stage3-step1000",
        "allenai/Olmo-3-1025-7B", ("7B", "32B"), picks=("stage1", "stage2", "stage3"), ids_used=100278,
        tokenizer=_DOLMA2, note="stage 2 has half the batch, so its steps are worth half",
    ),
    KnownSuite(
        "datadecide", ("allenai/DataDecide-*",), "step1250-seed-default, step1250-seed-large-aux-2",
        "allenai/DataDecide-c4-150M", ("4M to 1B", "14 sizes of 25 recipes"), seed="default", ids_used=50280,
        rows=(50304,), tokenizer=_DOLMA1, note="each of three seeds is a run: --seed all writes a store for each",
    ),
    KnownSuite(
        "amber", ("LLM360/Amber", "IFM/Amber"), "ckpt_000 ... ckpt_358", "LLM360/Amber", ("7B",), unit="chunk",
        ids_used=32000, rows=(32000,), note="the number is a chunk of data of about 3.5B tokens, no step",
    ),
    KnownSuite(
        "crystal", ("LLM360/Crystal*", "IFM/Crystal*"), "CrystalCoder_phase1_checkpoint_001000, each phase counts anew",
        "LLM360/CrystalCoder", ("7B",), stages=("phase1", "phase2", "phase3"),
    ),
    KnownSuite("k2", ("LLM360/K2", "IFM/K2"), "ckpt_000 ...", "LLM360/K2", ("65B",), unit="chunk"),
    KnownSuite(
        "smollm2", ("HuggingFaceTB/SmolLM2-*-intermediate-checkpoints",), "step-125000",
        "HuggingFaceTB/SmolLM2-135M-intermediate-checkpoints", ("135M", "360M", "1.7B"), ids_used=49152, rows=(49152,),
        tokenizer="HuggingFaceTB/SmolLM2-135M",
    ),
    KnownSuite(
        "smollm3", ("HuggingFaceTB/SmolLM3-*checkpoints",), "stage1-step-40000, lc-4k-to-32k-step-4000, it-SFT",
        "HuggingFaceTB/SmolLM3-3B-checkpoints", ("3B",),
        stages=("stage1", "stage2", "stage3", "lc-4k-to-32k", "lc-32k-to-64k"),
    ),
    KnownSuite(
        "fineweb-ablations", ("HuggingFaceFW/ablation-model-*",), "step-001000-2BT",
        "HuggingFaceFW/ablation-model-fineweb-edu", ("1.8B",), tokenizer="openai-community/gpt2",
    ),
    KnownSuite(
        "tinyllama", ("TinyLlama/tinyLlama-intermediate-checkpoints*",), "step-240k-token-503B",
        "TinyLlama/tinyLlama-intermediate-checkpoints", ("1.1B",), ids_used=32000, rows=(32000,),
    ),
    KnownSuite(
        "tinyllama-repositories", ("TinyLlama/TinyLlama-1.1B-intermediate-step-*",), "one repository a step",
        "'TinyLlama/TinyLlama-1.1B-intermediate-step-*'", ("1.1B",), ids_used=32000, rows=(32000,),
    ),
    KnownSuite(
        "ling-mini", ("inclusionAI/Ling-mini-base-2.0-*T",), "one repository a count of tokens",
        "'inclusionAI/Ling-mini-base-2.0-*T'", ("16B",), unit="tokens",
    ),
    KnownSuite(
        "multiberts", ("google/multiberts-seed_*-step_*",), "one repository a step and seed: seed_0-step_20k",
        "'google/multiberts-seed_0-step_*'", ("base",), ids_used=30522, rows=(30522,),
        tokenizer="google-bert/bert-base-uncased",
    ),
    KnownSuite(
        "bloom", ("bigscience/bloom-*-intermediate",), "tags global_step1000 ...", "bigscience/bloom-560m-intermediate",
        ("560m", "1b1", "7b1"), ids_used=250680, rows=(250880,), tokenizer="bigscience/bloom",
    ),
    KnownSuite(
        "mistral-gpt2", ("stanford-crfm/*gpt2-*-x*",), "checkpoint-100 ..., 610 of each",
        "stanford-crfm/alias-gpt2-small-x21", ("small", "medium"), ids_used=50257, rows=(50257,),
        tokenizer="openai-community/gpt2",
    ),
    KnownSuite("hplt2c", ("HPLT/hplt2c_*_checkpoints",), "checkpoint_0001000", "HPLT/hplt2c_eng_checkpoints"),
    KnownSuite("hplt-bert", ("HPLT/hplt_bert_base_*",), "step3125 ... step31250", "HPLT/hplt_bert_base_en"),
    KnownSuite(
        "babylm", ("BabyLM-community/*", "babylm/*"), "chck_1M ... chck_100M",
        "BabyLM-community/babylm-baseline-10m-gpt2", unit="tokens", note="the number counts words, not tokens",
    ),
    KnownSuite(
        "comma", ("common-pile/comma-v0.1-*",), "stage1-step010000-tokens21B, stage2-step002000-tokens969B",
        "common-pile/comma-v0.1-1t", ("7B",), stages=("stage1", "stage2"), ids_used=64004, rows=(64256,),
        note="main is an average of checkpoints",
    ),
    KnownSuite(
        "apertus", ("swiss-ai/Apertus-*-2509",), "step50000-tokens210B, longctx-step1000", "swiss-ai/Apertus-8B-2509",
        ("8B", "70B"), stages=("base", "longctx"), ids_used=131072, rows=(131072,),
        note="the batch doubles on the way: --by tokens puts the main part on an axis of tokens (with --stage base)",
    ),
    KnownSuite(
        "lucie", ("OpenLLM-France/Lucie-7B*",), "step0005000, extension_step0000250", "OpenLLM-France/Lucie-7B",
        ("7B",), stages=("base", "extension"), ids_used=65024, rows=(65024,),
    ),
    KnownSuite(
        "ettin", ("jhu-clsp/ettin-*",), "tags step1000, ext1000, decay1000", "jhu-clsp/ettin-decoder-17m",
        ("17m", "32m", "68m", "150m", "400m", "1b"), stages=("base", "ext", "decay"),
    ),
    KnownSuite(
        "baichuan2", ("baichuan-inc/Baichuan2-7B-Intermediate-Checkpoints",), "train_00220B",
        "baichuan-inc/Baichuan2-7B-Intermediate-Checkpoints", ("7B",), unit="tokens", ids_used=125696, rows=(125696,),
    ),
    KnownSuite(
        "pico", ("pico-lm/pico-decoder-*",), "commits of a branch, the step in their titles; or checkpoints/step_1000",
        "pico-lm/pico-decoder-tiny", ("tiny", "small", "medium", "large"), ids_used=50280, rows=(50304,),
        tokenizer=_DOLMA1,
    ),
    KnownSuite(
        "neo", ("m-a-p/neo_7b_intermediate",), "folders iter_0002384/mp_rank_NN of one revision",
        "m-a-p/neo_7b_intermediate", ("7B",),
    ),
    KnownSuite(
        "neelnanda", ("NeelNanda/*",), "files checkpoints/..._000262144.pth of one revision",
        "NeelNanda/SoLU_2L512W_C4_Code", ("1L", "2L", "3L", "4L"), pattern=r".*_(\d+)(?:\.pth)?",
        note="in TransformerLens' own format; numbers beyond a thousand million are tokens",
    ),
    KnownSuite(
        "olmo-core", (), "addresses in the official tables: .../step1000/model_and_optim/", "OLMo-2-0425-1B.csv",
        note="a manifest: the table from the project's repository, as it is",
    ),
)  # fmt: skip


def known_suite(repository: str) -> KnownSuite | None:
    """The first of the known suites that a repository is of; None for one that nobody has put here."""
    plain = repository.partition("@")[0]
    return next((one for one in KNOWN_SUITES if any(fnmatchcase(plain, glob) for glob in one.ids)), None)


def preset_of(name: str) -> KnownSuite:
    """A known suite by its name. Raises ValueError."""
    found = next((one for one in KNOWN_SUITES if one.name == name), None)
    if found is None:
        raise ValueError(
            f"preset {name!r} is not known; there is {', '.join(one.name for one in KNOWN_SUITES)} (trainhooks suites)."
        )
    return found


def stages_of(suite: KnownSuite, there: Sequence[str]) -> tuple[str, ...]:
    """The stages to take of those that are `there`, in their order; empty where the suite says nothing of them."""
    named = tuple(stage or "base" for stage in there)
    return tuple(stage for stage in suite.picks or suite.stages if stage in named)
