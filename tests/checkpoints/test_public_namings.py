"""The namings of 47 public suites, each served from one hub on loopback: steps, order, stages, the tensor, and bytes.

A suite is a number, or a word, that begins the keys of `ROWS`: 39 that were found with a repository and its layout, and
8 more that stand for namings which others use. Most have several rows, one for each repository with a naming, a layout
or a head of its own. A row has the names in the order in which the checkpoints were made. Each holds its place in that
order as the value of its output embedding, so that an order that is wrong, or another matrix, is seen.

Rows without options, or with a preset, are those that are read as they lie there: all 47 suites have one.
"""

import argparse
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hub_client import online
from hub_server import Hub, serving
from safetensors.torch import save

from trainhooks.checkpoints.head_key import head_key
from trainhooks.checkpoints.known_suites import known_suite, preset_of
from trainhooks.checkpoints.suite import AmbiguousNames, list_suite

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SUITES, LEAST = 47, 43
MOST_BYTES = {
    "transformers": 12_000, "shards": 20_000, "megatron": 60_000, "neox": 40_000, "lens": 30_000, "core": 20_000,
}  # fmt: skip
"""Of a checkpoint: the body alone has 65,536."""
VOCAB, DIM = 24, 4
B = 10**9
UNTIED = ("model.embed_tokens.weight", "lm_head.weight")
NEOX = ("gpt_neox.embed_in.weight", "embed_out.weight")
HF_OLMO = ("model.transformer.wte.weight", "model.transformer.ff_out.weight")
PICO = ("embedding_proj.weight", "de_embedding_proj.weight")
TIED = ("model.embed_tokens.weight",)
GPT2 = ("transformer.wte.weight",)
MEGATRON = ("embedding.word_embeddings.weight", "output_layer.weight")
LAYERS = ("sequential.0.word_embeddings.weight", "sequential.4.final_linear.weight")
LENS = ("embed.W_E", "unembed.W_U")
CORE = ("model.embeddings.weight", "model.lm_head.w_out.weight")


@dataclass
class Row:
    """`names` in order, with a stage where they have one; `beside` are names that are no steps; `steps` what is
    expected where it is not what the names say; `where` are branches, folders, commits, repositories, files or the
    addresses of a table; `layout` is how a checkpoint's files are written."""

    repo: str
    names: list
    tensors: tuple = UNTIED
    beside: tuple = ("main",)
    steps: tuple = ()
    where: str = "branches"
    layout: str = "transformers"
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
    "2 weight seeds": Row("EleutherAI/pythia-14m-weight-seed3", ["step0", "step8", "step1000"], NEOX),
    "3 v0": Row("EleutherAI/pythia-160m-v0", ["step1000", "step2000", "step10000"], NEOX),
    "4 neox": Row("EleutherAI/neox-ckpt-pythia-160m-v1", ["step1000", "step9000", "step10000"], LAYERS, layout="neox"),
    "5 deep ignorance": Row(
        "EleutherAI/deep-ignorance-pretraining-stage-x", ["global_step999", "global_step1000"], NEOX
    ),
    "6 hubble": Row("allegrolab/hubble-1b-hf", ["step900", "step1000", "step20000"]),
    "7 native olmo": Row("allenai/OLMo-7B", ["step9000-tokens40B", "step10000-tokens44B"], HF_OLMO),
    "7 native olmo, tied": Row(
        "allenai/OLMo-1B", ["step20000-tokens84B", "step117850-tokens494B", "step738020-tokens3095B"], HF_OLMO[:1]
    ),
    "8 olmo hf, 7B": Row("allenai/OLMo-7B-hf", ["step1000-tokens4B", "step557000-tokens2464B"], layout="shards"),
    "8 olmo hf, 0424": Row("allenai/OLMo-7B-0424-hf", ["step500-tokens2B", "step477000-tokens2000B"], layout="shards"),
    "8 olmo hf, 0724": Row("allenai/OLMo-1B-0724-hf", ["step500-tokens1B", "step9500-tokens19B"]),
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
    "10 olmo 2, 32B": Row(
        "allenai/OLMo-2-0325-32B",
        staged("stage1", "stage1-step9000-tokens76B", "stage1-step721901-tokens6056B"),
        beside=("main", "stage2-ingredient1-step1000-tokens9B", "stage2-ingredient2-step1000-tokens9B"),
        layout="shards",
    ),
    "10 olmo 2, 1B": Row(
        "allenai/OLMo-2-0425-1B",
        staged("stage1", "stage1-step0-tokens0B", "stage1-step10000-tokens21B"),
        beside=("main", "stage2-ingredient3-step1000-tokens3B"),
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
    "12 olmo 3, 32B": Row(
        "allenai/Olmo-3-1125-32B",
        [
            *staged("stage1", "stage1-step1000", "stage1-step656000"),
            *staged("stage2", "stage2-step1000"),
            *staged("stage3", "stage3-step1000"),
        ],
        steps=(1000, 656000, 657000, 658000),
        beside=("main", "stage2-ingredient1-step1000", "stage2-ingredient2-step1000"),
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
    "20 tinyllama, after 1T": Row(
        "TinyLlama/tinyLlama-intermediate-checkpoints-after-1T-token",
        ["step-480k-token-1007B", "step-955k-token-2T", "step-1431k-token-3T"],
        steps=(480000, 955000, 1431000),
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
    "25 mistral, medium": Row(
        "stanford-crfm/arwen-gpt2-medium-x21", ["checkpoint-10", "checkpoint-4000", "checkpoint-400000"], GPT2
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
    "32 ettin encoder": Row(
        "jhu-clsp/ettin-encoder-17m",
        ["step1000", "step599525", ("ext500", "ext"), ("decay100", "decay")],
        ("model.embeddings.tok_embeddings.weight",),
        where="tags",
        steps=(1000, 599525, 600025, 600125),
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
        MEGATRON,
        where="folders",
        layout="megatron",
    ),
    "45 toy models": Row(
        "NeelNanda/SoLU_2L512W_C4_Code",
        [f"SoLU_2L512W_C4_Code_{number:012d}.pth" for number in (0, 262144, 21953478656)],
        LENS,
        where="checkpoint files",
        layout="lens",
        steps=(0, 262144, 21953478656),
    ),
    "47 olmo-core": Row(
        "core", ["step0", "step9000", "step10000"], CORE, where="table", layout="core", steps=(0, 9000, 10000)
    ),
    "tokens of a run": Row(
        "togethercomputer/RedPajama-INCITE-7B-Base",
        ["240b_tokens", "960b_tokens", "1t_tokens"],
        NEOX,
        steps=(240 * B, 960 * B, 1000 * B),
    ),
    "decimals": Row(
        "Skywork/Skywork-13B-Base-Intermediate",
        ["0.5T", "1T", "3.1T"],
        steps=(500 * B, 1000 * B, 3100 * B),
    ),
    "alone tokens": Row("org/tokens", ["10B", "20B", "100B"], steps=(10 * B, 20 * B, 100 * B)),
    "ep-ba": Row("org/composer", ["ep0-ba900", "ep0-ba1000", "ep1-ba20000"], GPT2, steps=(900, 1000, 20000)),
    "iter": Row("org/iterations", ["iter_0000900", "iter_0001000", "iter_0020000"]),
    "unsharded": Row("org/unsharded", ["step900-unsharded", "step1000-unsharded", "step20000-unsharded"], HF_OLMO),
    "bare": Row("org/bare", ["9", "10", "100"]),
    "saves": Row("org/saves", ["ckpt_007", "ckpt_070", "ckpt_100"]),
}


def tensors(row, value):
    *inputs, head = row.tensors
    found = {head: torch.full((VOCAB, DIM), float(value)), "body.weight": torch.ones(128, 128)}
    return found | {name: torch.full((VOCAB, DIM), -1.0) for name in inputs}


def settings(row):
    return json.dumps({"vocab_size": VOCAB, "tie_word_embeddings": len(row.tensors) == 1}).encode()


def torch_bytes(content):
    held = io.BytesIO()
    torch.save(content, held)
    return held.getvalue()


def in_shards(row, value):
    """A file for each tensor; the head's is the last."""
    held = tensors(row, value)
    of = {key: f"model-{number:05d}-of-00003.safetensors" for number, key in enumerate(sorted(held, reverse=True), 1)}
    index = json.dumps({"weight_map": of}).encode()
    return {"model.safetensors.index.json": index, **{file: save({key: held[key]}) for key, file in of.items()}}


def in_ranks(row, value):
    """Two tensor ranks of Megatron-LM."""
    told = argparse.Namespace(tensor_model_parallel_size=2, padded_vocab_size=VOCAB)
    halves = [{key: one.chunk(2)[rank].clone() for key, one in tensors(row, value).items()} for rank in range(2)]
    return {
        f"mp_rank_{rank:02d}/model_optim_rng.pt": torch_bytes({"args": told, "model": half})
        for rank, half in enumerate(halves)
    }


def in_layers(row, value):
    """A file a layer, of GPT-NeoX; the trainer's arguments beside them."""
    held = tensors(row, value)
    layers = {0: {"word_embeddings.weight": held[row.tensors[0]]}, 2: {"body.weight": held["body.weight"]}}
    layers[4] = {"final_linear.weight": held[row.tensors[1]]}
    files = {f"layer_{n:02d}-model_00-model_states.pt": torch_bytes(layer) for n, layer in layers.items()}
    return files | {"mp_rank_00_model_states.pt": torch_bytes({"module": None, "args": {"padded_vocab_size": VOCAB}})}


def distributed(row, value):
    """A distributed checkpoint a folder down."""
    with TemporaryDirectory() as folder:
        dcp.save(tensors(row, value), checkpoint_id=folder, no_dist=True)
        return {f"model_and_optim/{file.name}": file.read_bytes() for file in Path(folder).iterdir()}


def transposed(row, value):
    return {key: one.T.contiguous() if key == row.tensors[-1] else one for key, one in tensors(row, value).items()}


def files(row, value):
    if row.layout == "lens":
        return {"": torch_bytes(transposed(row, value))}
    if row.layout in WRITTEN:
        return WRITTEN[row.layout](row, value)
    return {"model.safetensors": save(tensors(row, value)), "config.json": settings(row)}


WRITTEN = {"shards": in_shards, "megatron": in_ranks, "neox": in_layers, "core": distributed}


def below(held, folder):
    """Files in a folder; one without a name is the folder itself."""
    return {f"{folder}/{name}".rstrip("/"): data for name, data in held.items()}


def serve(hub, row):
    """Put a row's checkpoints into the hub."""
    names = [name for name, _ in row.parts]
    held = [files(row, value) for value in range(len(names))]
    if row.where in ("repositories", "list"):
        for name, one in zip(names, held, strict=True):
            hub.add(name, "main", one)
        return
    if row.where == "table":
        for name, one in zip(names, held, strict=True):
            hub.plain |= below(one, f"/{row.repo}/{name}")
        return
    if above := {"folders": "", "checkpoints/": "checkpoints/", "checkpoint files": "checkpoints/"}.get(row.where):
        hub.add(row.repo, "main", {"config.json": settings(row)})
    if above is not None:
        for name, one in zip(names, held, strict=True):
            hub.revisions.setdefault(row.repo, {}).setdefault("main", {}).update(below(one, f"{above}{name}"))
        return
    if row.where == "commits":
        hub.commits[row.repo] = list(zip(names, held, strict=True))[::-1]
        hub.add(row.repo, "main", files(row, -2))
        return
    # the hub lists in no order of steps
    for name in sorted([*names, *row.beside]):
        hub.add(row.repo, name, held[names.index(name)] if name in names else files(row, -2))
        if row.where == "tags":
            hub.tags.add((row.repo, name))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    hub = Hub()
    for row in ROWS.values():
        serve(hub, row)
    hub.add("utter-project/EuroLLM-1.7B", "main", files(ROWS["6 hubble"], 0))
    with serving(hub) as address, online(address, tmp_path_factory.mktemp("home")):
        rows = [f"{re.sub('[^0-9]', '', name)},{address}/core/{name}/" for name, _ in ROWS["47 olmo-core"].parts]
        hub.table = tmp_path_factory.mktemp("official") / "OLMo-2-0425-1B.csv"
        hub.table.write_text("Step,Checkpoint Directory\n" + "\n".join(rows) + "\n")
        yield hub


def listed(row, hub):
    if row.where == "table":
        return list_suite(hub.table)
    source = [name for name, _ in row.parts] if row.where == "list" else row.source or row.repo
    return list_suite(source, **row.options)


def test_all_suites_are_here_and_most_need_no_option():
    plain = {key.split()[0] for key, row in ROWS.items() if set(row.options) <= {"preset"}}
    assert len({key.split()[0] for key in ROWS}) == SUITES
    assert len(plain) >= LEAST
    numbers = {int(name) for name in plain if name.isdigit()}
    assert numbers == {*range(1, 33), 34, 39, 40, 41, 42, 45, 47}


@pytest.mark.parametrize("number", ROWS)
def test_a_public_naming_is_read_right(hub, number):
    row = ROWS[number]
    suite = listed(row, hub)
    stages = [stage for _, stage in row.parts]
    assert [entry.stage for entry in suite.entries] == stages
    assert suite.steps == row.expected
    before = hub.fetched
    for value, entry in enumerate(suite.entries):
        opened = suite.open(entry)
        key = head_key(opened)
        assert row.tensors[-1].endswith(key.key)
        assert torch.equal(opened.read(key.key), torch.full((VOCAB, DIM), float(value))), (value, entry)
    most = {"megatron": 60_000, "neox": 40_000, "shards": 20_000, "lens": 30_000, "core": 20_000}.get(
        row.layout, 12_000
    )
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
    numbered = [row for key, row in ROWS.items() if key[0].isdigit() and row.where == "branches"]
    unknown = {row.repo for row in numbered if known_suite(row.repo) is None}
    assert unknown == set()
    assert preset_of("olmo2").rows == (100352,)
    with pytest.raises(ValueError, match="preset 'gpt' is not known"):
        preset_of("gpt")
