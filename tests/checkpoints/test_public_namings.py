"""The namings of public suites, each served from one hub on loopback: steps, order, stages, the tensor, and bytes.

A row has the names in the order in which the checkpoints were made. Each holds its place in that order as the value of
its output embedding, so that an order that is wrong, or another matrix, is seen.
"""

import io
import json
import re
from dataclasses import dataclass, field

import pytest
import torch
from hub_client import online
from hub_server import Hub, serving
from safetensors.torch import save

from trainhooks.checkpoints.head_key import head_key
from trainhooks.checkpoints.known_suites import known_suite, preset_of
from trainhooks.checkpoints.suite import AmbiguousNames, list_suite

VOCAB, DIM = 24, 4
B = 10**9
UNTIED = ("model.embed_tokens.weight", "lm_head.weight")
NEOX = ("gpt_neox.embed_in.weight", "embed_out.weight")
HF_OLMO = ("model.transformer.wte.weight", "model.transformer.ff_out.weight")
PICO = ("embedding_proj.weight", "de_embedding_proj.weight")
TIED = ("model.embed_tokens.weight",)
GPT2 = ("transformer.wte.weight",)


@dataclass
class Row:
    """`names` in order, with a stage where they have one; `beside` are names that are no steps; `steps` what is
    expected where it is not what the names say; `where` are branches, folders, commits, or repositories."""

    repo: str
    names: list
    tensors: tuple = UNTIED
    beside: tuple = ("main",)
    steps: tuple = ()
    where: str = "branches"
    source: str = ""
    options: dict = field(default_factory=dict)

    @property
    def parts(self):
        return [name if isinstance(name, tuple) else (name, "") for name in self.names]

    @property
    def expected(self):
        """The steps: as given, or the number behind the stage."""
        plain = (re.sub(r"^stage\d-", "", name) for name, _ in self.parts)
        return self.steps or tuple(int(re.search(r"\d+", name)[0]) for name in plain)


def staged(stage, *names):
    return [(name, stage) for name in names]


def tiny_llama(*steps):
    return [f"TinyLlama/TinyLlama-1.1B-intermediate-step-{step}" for step in steps]


ROWS = {
    "1 pythia": Row("EleutherAI/pythia-160m", ["step0", "step1", "step512", "step1000", "step143000"], NEOX),
    "1 deduped": Row("EleutherAI/pythia-12b-deduped", ["step0", "step9000", "step10000"], NEOX),
    "2 seeds": Row("EleutherAI/pythia-160m-seed1", ["step0", "step8", "step1000"], NEOX),
    "2 data seeds": Row("EleutherAI/pythia-160m-data-seed1", ["step0", "step8", "step1000"], NEOX),
    "3 v0": Row("EleutherAI/pythia-160m-v0", ["step1000", "step2000", "step10000"], NEOX),
    "5 deep ignorance": Row(
        "EleutherAI/deep-ignorance-pretraining-stage-x", ["global_step999", "global_step1000"], NEOX
    ),
    "6 hubble": Row("allegrolab/hubble-1b-hf", ["step900", "step1000", "step20000"]),
    "7 native olmo": Row("allenai/OLMo-7B", ["step9000-tokens40B", "step10000-tokens44B"], HF_OLMO),
    "8 olmo hf": Row("allenai/OLMo-1B-hf", ["step9000-tokens18B", "step10000-tokens20B", "step738000-tokens3095B"]),
    "9 olmoe": Row("allenai/OLMoE-1B-7B-0924", ["step5000-tokens20B", "step10000-tokens41B"], beside=("main", "fp32")),
    "10 olmo 2": Row(
        "allenai/OLMo-2-1124-7B",
        staged("stage1", "step150-tokens1B", "stage1-step1000-tokens5B", "stage1-step10000-tokens42B"),
        steps=(150, 1000, 10000),
        beside=("main", "stage2-ingredient1-step1000-tokens5B", "stage2-ingredient2-step1000-tokens5B"),
    ),
    "10 olmo 2, an ingredient": Row(
        "allenai/OLMo-2-1124-13B",
        [
            *staged("stage1", "stage1-step9000-tokens76B"),
            *staged("stage2-ingredient2", "stage2-ingredient2-step500-tokens5B"),
        ],
        steps=(9000, 9500),
        beside=("stage2-ingredient1-step500-tokens5B",),
        options={"stage": "stage1,stage2-ingredient2"},
    ),
    "11 early training": Row(
        "allenai/OLMo-2-0425-1B-early-training",
        staged("stage1", "stage1-step0-tokens0B", "stage1-step9000-tokens19B", "stage1-step36000-tokens76B"),
    ),
    "12 olmo 3": Row(
        "allenai/Olmo-3-1025-7B",
        [
            *staged("stage1", "stage1-step9000", "stage1-step10000"),
            *staged("stage2", "stage2-step1000", "stage2-step9000"),
            *staged("stage3", "stage3-step500"),
        ],
        steps=(9000, 10000, 11000, 19000, 19500),
    ),
    "13 datadecide": Row(
        "allenai/DataDecide-c4-150M",
        ["step0-seed-default", "step1250-seed-default", "step10000-seed-default"],
        HF_OLMO,
        beside=("step0-seed-large-aux-2", "step1250-seed-large-aux-2", "step0-seed-large-aux-3"),
        options={"preset": "datadecide"},
    ),
    "14 amber": Row("LLM360/Amber", ["ckpt_000", "ckpt_009", "ckpt_010", "ckpt_358"]),
    "15 crystal": Row(
        "LLM360/CrystalCoder",
        [
            *staged("phase1", "CrystalCoder_phase1_checkpoint_001000", "CrystalCoder_phase1_checkpoint_055500"),
            *staged("phase2", "CrystalCoder_phase2_checkpoint_000500", "CrystalCoder_phase2_checkpoint_100000"),
            *staged("phase3", "CrystalCoder_phase3_checkpoint_000250"),
        ],
        steps=(1000, 55500, 56000, 155500, 155750),
    ),
    "16 k2": Row("LLM360/K2", ["ckpt_001", "ckpt_090", "ckpt_100"]),
    "17 smollm2": Row("HuggingFaceTB/SmolLM2-135M-intermediate-checkpoints", ["step-125000", "step-250000"], TIED),
    "17 smollm2, untied": Row("HuggingFaceTB/SmolLM2-1.7B-intermediate-checkpoints", ["step-9000", "step-125000"]),
    "18 smollm3": Row(
        "HuggingFaceTB/SmolLM3-3B-checkpoints",
        [
            *staged("stage1", "stage1-step-40000", "stage1-step-3440000"),
            *staged("stage2", "stage2-step-3480000"),
            *staged("stage3", "stage3-step-4720000"),
            *staged("lc-4k-to-32k", "lc-4k-to-32k-step-4000", "lc-4k-to-32k-step-20000"),
            *staged("lc-32k-to-64k", "lc-32k-to-64k-step-4000"),
        ],
        TIED,
        beside=("main", "it-SFT", "it-LC-expert", "it-soup-APO"),
        steps=(40000, 3440000, 3480000, 4720000, 4724000, 4740000, 4744000),
    ),
    "19 ablations": Row(
        "HuggingFaceFW/ablation-model-fineweb-edu", ["step-001000-2BT", "step-010000-20BT", "step-167000-350BT"], TIED
    ),
    "20 tinyllama": Row(
        "TinyLlama/tinyLlama-intermediate-checkpoints",
        ["step-5k-token-10B", "step-240k-token-503B", "step-1195k-token-2.5T"],
        steps=(5000, 240000, 1195000),
    ),
    "21 tinyllama, repositories": Row(
        "TinyLlama/TinyLlama-1.1B",
        tiny_llama("50K-105b", "240k-503b", "480k-1T", "955k-token-2T", "1431k-3T"),
        where="repositories",
        source="TinyLlama/TinyLlama-1.1B-intermediate-step-*",
        steps=(50000, 240000, 480000, 955000, 1431000),
    ),
    "21 tinyllama, a list": Row(
        "PY007/list",
        [f"PY007/TinyLlama-1.1B-intermediate-step-{step}" for step in ("715k-1.5T", "1195k-token-2.5T")],
        where="list",
        steps=(715000, 1195000),
    ),
    "22 ling": Row(
        "inclusionAI/Ling",
        [f"inclusionAI/Ling-mini-base-2.0-{n}T" for n in (5, 10, 15, 20)],
        where="repositories",
        source="inclusionAI/Ling-mini-base-2.0-*T",
        steps=tuple(n * 1000 * B for n in (5, 10, 15, 20)),
    ),
    "23 multiberts": Row(
        "google/multiberts",
        [f"google/multiberts-seed_0-step_{n}k" for n in (0, 20, 1900)],
        ("bert.embeddings.word_embeddings.weight",),
        where="repositories",
        source="google/multiberts-seed_0-step_*",
        steps=(0, 20000, 1900000),
    ),
    "24 bloom": Row(
        "bigscience/bloom-560m-intermediate",
        ["global_step1000", "global_step10000"],
        ("word_embeddings.weight",),
        where="tags",
    ),
    "25 mistral": Row(
        "stanford-crfm/alias-gpt2-small-x21", ["checkpoint-0", "checkpoint-90000", "checkpoint-100000"], GPT2
    ),
    "26 hplt": Row("HPLT/hplt2c_eng_checkpoints", ["checkpoint_0001000", "checkpoint_0010000"]),
    "27 hplt bert": Row("HPLT/hplt_bert_base_en", ["step3125", "step6250", "step31250"]),
    "28 babylm": Row(
        "BabyLM-community/babylm-baseline-10m-gpt2",
        ["chck_1M", "chck_9M", "chck_10M", "chck_100M"],
        GPT2,
        steps=(10**6, 9 * 10**6, 10**7, 10**8),
    ),
    "29 comma": Row(
        "common-pile/comma-v0.1-1t",
        [
            *staged("stage1", "stage1-step010000-tokens21B", "stage1-step460000-tokens965B"),
            *staged("stage2", "stage2-step002000-tokens969B", "stage2-step018000-tokens1003B"),
        ],
        steps=(10000, 460000, 462000, 478000),
    ),
    "29 comma by tokens": Row(
        "common-pile/comma-v0.1-2t",
        [
            *staged("stage1", "stage1-step010000-tokens21B", "stage1-step460000-tokens965B"),
            *staged("stage2", "stage2-step002000-tokens969B"),
        ],
        steps=(21 * B, 965 * B, 969 * B),
        options={"by": "tokens"},
    ),
    "30 apertus": Row(
        "swiss-ai/Apertus-8B-2509",
        ["step50000-tokens210B", "step1194000-tokens5014B", "step2627139-tokens15T", ("longctx-step1000", "longctx")],
        steps=(50000, 1194000, 2627139, 2628139),
    ),
    "30 apertus by tokens": Row(
        "swiss-ai/Apertus-70B-2509",
        ["step50000-tokens420B", "step1155828-tokens15T"],
        steps=(420 * B, 15000 * B),
        beside=("main", "longctx-step1000"),
        options={"by": "tokens", "stage": "base"},
    ),
    "31 lucie": Row(
        "OpenLLM-France/Lucie-7B",
        ["step0005000", "step0753851", ("extension_step0000250", "extension"), ("extension_step0001220", "extension")],
        steps=(5000, 753851, 754101, 755071),
    ),
    "32 ettin": Row(
        "jhu-clsp/ettin-decoder-17m",
        ["step599525", "step1199050", ("ext1000", "ext"), ("ext9000", "ext"), ("decay100", "decay")],
        TIED,
        where="tags",
        steps=(599525, 1199050, 1200050, 1208050, 1208150),
    ),
    "34 baichuan": Row(
        "baichuan-inc/Baichuan2-7B-Intermediate-Checkpoints",
        ["train_00220B", "train_00440B", "train_02420B"],
        steps=(220 * B, 440 * B, 2420 * B),
    ),
    "39 pico": Row(
        "pico-lm/pico-decoder-tiny",
        ["Saving HF Model -- Step 0", "Saving HF Model -- Step 9000", "Saving HF Model -- Step 10000"],
        PICO,
        where="commits",
    ),
    "39 pico, folders": Row("org/pico-derived", ["step_0", "step_9000", "step_10000"], PICO, where="checkpoints/"),
    "40 trajectories": Row("arkilpatel/olmo2-1b-traj-x", ["step-0020", "step-0100", "step-1000"], where="folders"),
    "41 metadata": Row(
        "bs-modeling-metadata/x",
        ["checkpoint-1000step", "checkpoint-9000step", "checkpoint-10000step"],
        GPT2,
        where="folders",
    ),
    "42 neo": Row(
        "m-a-p/neo_7b_intermediate",
        ["iter_0002384", "iter_0010000"],
        ("model.embedding.word_embeddings.weight", "model.output_layer.weight"),
        where="megatron",
    ),
}


def tensors(row, value):
    *inputs, head = row.tensors
    found = {head: torch.full((VOCAB, DIM), float(value)), "body.weight": torch.ones(128, 128)}
    return found | {name: torch.full((VOCAB, DIM), -1.0) for name in inputs}


def files(row, value, under=""):
    config = json.dumps({"vocab_size": VOCAB, "tie_word_embeddings": len(row.tensors) == 1}).encode()
    if row.where != "megatron":
        return {f"{under}model.safetensors": save(tensors(row, value)), f"{under}config.json": config}
    held = io.BytesIO()
    torch.save({"model": {key.removeprefix("model."): one for key, one in tensors(row, value).items()}}, held)
    return {f"{under}mp_rank_00/model_optim_rng.pt": held.getvalue(), "config.json": config}


def serve(hub, row):
    """Put a row's checkpoints into the hub."""
    names = [name for name, _ in row.parts]
    if row.where in ("repositories", "list"):
        for value, name in enumerate(names):
            hub.add(name, "main", files(row, value))
        return
    if row.where in ("folders", "checkpoints/", "megatron"):
        above = row.where if row.where.endswith("/") else ""
        whole = [files(row, value, f"{above}{name}/") for value, name in enumerate(names)]
        hub.add(row.repo, "main", {key: data for one in whole for key, data in one.items()})
        return
    if row.where == "commits":
        hub.commits[row.repo] = [(name, files(row, value)) for value, name in enumerate(names)][::-1]
        hub.add(row.repo, "main", files(row, -2))
        return
    # the hub lists in no order of steps
    for name in sorted([*names, *row.beside]):
        hub.add(row.repo, name, files(row, names.index(name) if name in names else -2))
        if row.where == "tags":
            hub.tags.add((row.repo, name))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    hub = Hub()
    for row in ROWS.values():
        serve(hub, row)
    hub.add("utter-project/EuroLLM-1.7B", "main", files(ROWS["6 hubble"], 0))
    with serving(hub) as address, online(address, tmp_path_factory.mktemp("home")):
        yield hub


def listed(row):
    source = [name for name, _ in row.parts] if row.where == "list" else row.source or row.repo
    return list_suite(source, **row.options)


@pytest.mark.parametrize("number", ROWS)
def test_a_public_naming_is_read_right(hub, number):
    row = ROWS[number]
    suite = listed(row)
    stages = [stage for _, stage in row.parts]
    assert [entry.stage for entry in suite.entries] == stages
    assert suite.steps == row.expected
    before = hub.fetched
    for value, entry in enumerate(suite.entries):
        opened = suite.open(entry)
        key = head_key(opened)
        assert row.tensors[-1].endswith(key.key)
        assert torch.equal(opened.read(key.key), torch.full((VOCAB, DIM), float(value))), (value, entry)
    most = 40_000 if row.where == "megatron" else 12_000  # the file has more than 65,536
    assert hub.fetched - before < most * len(suite.entries)
    if row.where in ("branches", "tags"):
        assert set(suite.unread) == set(row.beside) - {name for name, _ in row.parts}


def test_seeds_and_ingredients_are_asked_for(hub):
    with pytest.raises(AmbiguousNames, match="--seed default"):
        list_suite("allenai/DataDecide-c4-150M")


def test_a_repository_without_revisions_is_refused(hub):
    with pytest.raises(ValueError, match=r"no step can be read .*found main"):
        list_suite("utter-project/EuroLLM-1.7B")


def test_the_rows_are_of_suites_that_are_known():
    unknown = {row.repo for row in ROWS.values() if row.where == "branches" and known_suite(row.repo) is None}
    assert unknown == set()
    assert preset_of("olmo2").rows == (100352,)
    with pytest.raises(ValueError, match="preset 'gpt' is not known"):
        preset_of("gpt")
