"""How often a hub is asked, and for how many bytes, counted at a server on loopback: checkpoints of 30 shards."""

import json
import pickle
import re
from collections import Counter, defaultdict
from concurrent.futures import Executor, Future

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from hub_server import Hub, serving
from safetensors.torch import save

from trainhooks.analyze import analyze_suite
from trainhooks.checkpoints.audit.audit import audit_suite
from trainhooks.checkpoints.base import CheckpointError, PromisedEntry
from trainhooks.checkpoints.fetch_ahead import fetch_head
from trainhooks.checkpoints.formats.stored_tensor import StoredTensor
from trainhooks.checkpoints.opening import FileCheckpoint, open_checkpoint
from trainhooks.checkpoints.suite import list_suite

REPO, SHARDS, STEPS = "org/sharded", 30, (0, 10, 20, 30)
VOCAB, DIM = 1500, 32
HEAD, NORM = "embed_out.weight", "final_layer_norm.weight"
CONFIGS = {
    "a class that is known": {
        "model_type": "gpt_neox", "vocab_size": VOCAB, "hidden_size": DIM, "num_hidden_layers": SHARDS - 2,
        "num_attention_heads": 2, "intermediate_size": DIM, "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    },
    "names alone": {"vocab_size": VOCAB},
}  # fmt: skip
COUNTS = (1e5 / np.arange(1, VOCAB + 1)).astype(np.int64) + 1
HEAD_BYTES = 4 * VOCAB * DIM


def shard(number):
    return f"model-{number:05d}-of-{SHARDS:05d}.safetensors"


def state(step):
    """A model of 28 blocks; the head alone in the last shard, the last norm in the one before."""
    drift = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(step))
    frequency = torch.from_numpy(np.log(COUNTS)).float()[:, None] / 10
    tensors = {"gpt_neox.embed_in.weight": noise, HEAD: drift + 0.02 * step * frequency + 0.05 * noise}
    tensors |= {"gpt_neox." + NORM: torch.full((DIM,), 1.0 + step), "gpt_neox.final_layer_norm.bias": torch.zeros(DIM)}
    blocks = {
        f"gpt_neox.layers.{i}.mlp.dense_h_to_4h.weight": torch.full((DIM, DIM), 100.0 * i + step) for i in range(28)
    }
    return tensors | blocks


def place(key):
    if block := re.search(r"layers\.(\d+)\.", key):
        return int(block[1]) + 2
    return {HEAD: SHARDS, "gpt_neox.embed_in.weight": 1}.get(key, SHARDS - 1)


def files(step, config):
    by_shard = defaultdict(dict)
    for key, tensor in state(step).items():
        by_shard[place(key)][key] = tensor
    index = {"metadata": {}, "weight_map": {key: shard(place(key)) for key in state(step)}}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{shard(number): save(tensors) for number, tensors in by_shard.items()},
    }


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub()
    with serving(hub) as address:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub
    huggingface_hub.close_session()


def fill(hub, config, without=(), steps=STEPS):
    for step in steps:
        kept = {name: data for name, data in files(step, config).items() if name not in without}
        hub.add(REPO, f"step{step}", kept)


def asked(hub):
    """Requests by what they were for, since the last look; what the client asks for itself is not counted."""
    kinds = Counter()
    for path, _ in hub.requests:
        api = re.search(r"/(refs|revision|tree)\b", path)
        if path.startswith(f"/{REPO}/resolve"):
            kinds[
                "head" if shard(SHARDS) in path else "other shard" if "-of-" in path else path.rpartition("/")[2]
            ] += 1
        elif api:
            kinds[api[1]] += 1
    hub.requests.clear()
    return kinds


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_revision_of_30_shards(hub, tmp_path, kind):
    fill(hub, CONFIGS[kind])
    assert audit_suite(list_suite(REPO)).clean
    kinds, revisions = asked(hub), len(STEPS)
    assert kinds == {
        "refs": 1, "tree": revisions, "config.json": 1, "model.safetensors.index.json": 1, "head": revisions,
    }  # fmt: skip
    assert kinds.total() <= 3 * revisions
    assert revisions * HEAD_BYTES <= hub.fetched <= revisions * (HEAD_BYTES + 8192)

    hub.fetched = 0
    report = analyze_suite(REPO, counts=COUNTS, out=tmp_path / "again.zarr", workers=1)
    again = asked(hub)
    assert report.steps == STEPS
    assert not again.keys() & {"head", "config.json", "revision"}, "what the audit has read is not read again"
    assert again["tree"] == revisions, "in an analysis of its own: what lies where may have changed"
    assert again["other shard"] <= 3 * revisions, "the header of one more shard, and the norm's two vectors"
    assert hub.fetched <= revisions * 2 * 8192
    assert (kinds + again).total() <= 8 * revisions


def test_an_analysis_with_its_audit(hub, tmp_path):
    fill(hub, CONFIGS["a class that is known"])
    assert analyze_suite(REPO, counts=COUNTS, out=tmp_path / "a.zarr", workers=1).steps == STEPS
    kinds = asked(hub)
    assert kinds["tree"] == len(STEPS), "the audit's listing serves the analysis"
    assert kinds["head"] == len(STEPS), "in one request with its file's header"
    assert kinds.total() <= 4 * len(STEPS)


class OtherProcesses(Executor):
    """Does at once what a worker process would, with a job that has travelled as it does there."""

    def submit(self, call, /, *given):
        done = Future()
        done.set_result(call(*pickle.loads(pickle.dumps(given))))
        return done


@pytest.mark.parametrize("steps", [(0,), (0, 10, 20)], ids=["1 revision", "3 revisions"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("audit", [True, False], ids=["audited", "as it is"])
def test_workers_ask_for_no_more_than_one_process(hub, tmp_path, steps, workers, audit):
    fill(hub, CONFIGS["a class that is known"], steps=steps)
    pool = {} if workers == 1 else {"executor": OtherProcesses()}
    report = analyze_suite(REPO, counts=COUNTS, out=tmp_path / "a.zarr", workers=workers, audit=audit, **pool)
    assert report.steps == steps
    kinds = asked(hub)
    for_all = {"refs": 1, "config.json": 1, "model.safetensors.index.json": 1}
    of_each = {"tree": 1, "head": 1, "other shard": 1}  # whose norm lies right behind its header
    assert kinds == for_all | {kind: count * len(steps) for kind, count in of_each.items()}
    assert kinds.total() <= 6 * len(steps)


def test_one_revision_that_is_named_takes_four_requests(hub, tmp_path):
    hub.lists_blobs = True
    fill(hub, CONFIGS["a class that is known"])
    assert audit_suite(list_suite([f"{REPO}@step10"])).clean
    assert asked(hub) == {"revision": 1, "config.json": 1, "model.safetensors.index.json": 1, "head": 1}
    assert hub.fetched <= HEAD_BYTES + 4 * 8192


def test_a_revision_of_more_files_than_one_answer_may_list_is_listed_by_folders(hub, monkeypatch):
    monkeypatch.setattr("trainhooks.checkpoints.sources.hub_answers.MOST_BYTES", 4_000)
    hub.lists_blobs = True
    hub.add(REPO, "step0", {f"{i}/model.safetensors": save({HEAD: torch.full((2, 2), float(i))}) for i in range(50)})
    assert torch.equal(open_checkpoint(f"{REPO}@step0:7").read(HEAD), torch.full((2, 2), 7.0))


def joined(state):
    """An index of two shards: what lies in blocks, and the rest, the head first by its name."""
    inner = {key: tensor for key, tensor in state.items() if ".layers." in key}
    shards = {"model-00001-of-00002.safetensors": inner}
    shards["model-00002-of-00002.safetensors"] = {key: state[key] for key in state.keys() - inner.keys()}
    index = {"weight_map": {key: file for file, held in shards.items() for key in held}}
    return {"model.safetensors.index.json": json.dumps(index).encode(), **{f: save(held) for f, held in shards.items()}}


@pytest.mark.parametrize(("settings", "requests"), [({}, 2), ({"dtype": "float32"}, 1), ({"dtype": "float16"}, 2)])
def test_a_head_that_lies_first_comes_with_its_header_where_its_length_is_told(hub, settings, requests):
    config = json.dumps(CONFIGS["a class that is known"] | settings).encode()
    hub.add(REPO, "step0", {"config.json": config, **joined(state(0))})
    suite = list_suite([f"{REPO}@step0"])
    assert audit_suite(suite).clean
    assert sum("-of-" in path for path, _ in hub.requests) == requests
    assert hub.fetched <= HEAD_BYTES + 4 * 8192, "what has come is not asked for again"
    assert torch.equal(suite.open(suite.entries[0]).read(HEAD), state(0)[HEAD])


def test_a_head_elsewhere_than_at_a_hub_is_not_looked_into_before_its_turn():
    def refuse():
        raise AssertionError("a header or a tensor was read")

    entries = [PromisedEntry(key, "a.safetensors", read=refuse, announced=lambda: False) for key in (HEAD, "z")]
    config = CONFIGS["a class that is known"] | {"dtype": "float32"}
    fetch_head(FileCheckpoint("https://host/step0/", config, {one.key: StoredTensor(one, refuse) for one in entries}))


def test_settings_that_tell_too_much_cost_no_more_than_they_tell(hub):
    config = CONFIGS["a class that is known"] | {"dtype": "float32", "hidden_size": 2**40}
    hub.add(REPO, "step0", {"config.json": json.dumps(config).encode(), **joined(state(0))})
    assert audit_suite(list_suite([f"{REPO}@step0"])).clean
    assert hub.fetched <= HEAD_BYTES + 4 * 8192


def test_a_head_of_a_hash_that_is_known_is_not_fetched_for_its_header(hub):
    fill(hub, CONFIGS["a class that is known"])
    hub.revisions[REPO]["step20"] = hub.revisions[REPO]["step10"]
    assert {finding.kind for finding in audit_suite(list_suite(REPO)).findings} == {"identical"}
    assert hub.fetched <= 3 * HEAD_BYTES + 4 * 8192


def test_what_is_in_the_cache_is_not_fetched_with_a_header_that_is_not(hub, tmp_path):
    fill(hub, CONFIGS["a class that is known"])
    assert audit_suite(list_suite(REPO)).clean
    for begin in (tmp_path / "home").rglob("*.begin"):
        begin.unlink()
    hub.fetched = 0
    assert audit_suite(list_suite(REPO)).clean
    assert hub.fetched <= (2 + len(STEPS)) * 8192


def test_all_parameters_are_all_read(hub, tmp_path):
    fill(hub, CONFIGS["names alone"])
    report = analyze_suite(REPO, counts=None, out=tmp_path / "a.zarr", params="all", workers=1, audit=False)
    kinds = asked(hub)
    assert report.steps == STEPS
    assert kinds["tree"] == len(STEPS)
    assert kinds["other shard"] >= 29 * len(STEPS)


def test_a_missing_shard_without_the_head_is_a_note(hub, tmp_path):
    fill(hub, CONFIGS["a class that is known"], without=[shard(3)])
    found = audit_suite(list_suite(REPO))
    assert {finding.kind for finding in found.findings} == {"incomplete"}
    assert not found.broken
    assert not found.doubts
    assert f"{shard(3)} is not there" in found.render()
    assert analyze_suite(REPO, counts=COUNTS, out=tmp_path / "a.zarr", workers=1).steps == STEPS
    folder = tmp_path / "suite" / "step5"
    folder.mkdir(parents=True)
    for name, data in hub.revisions[REPO]["step0"].items():
        (folder / name).write_bytes(data)
    assert [finding.kind for finding in audit_suite(list_suite(folder.parent)).findings] == ["incomplete"]


def test_a_missing_shard_with_the_head_leaves_the_step_out(hub):
    fill(hub, CONFIGS["names alone"])
    del hub.revisions[REPO]["step10"][shard(SHARDS)]
    found = audit_suite(list_suite(REPO))
    assert list(found.broken) == [10]
    assert f"lies in {shard(SHARDS)}, which is not there" in found.broken[10]
    checkpoint = open_checkpoint(f"{REPO}@step10")
    with pytest.raises(CheckpointError, match="which is not there"):
        checkpoint.read(HEAD)


def test_a_listing_with_sizes_is_the_only_one(hub):
    hub.lists_blobs = True
    fill(hub, CONFIGS["names alone"])
    hub.revisions[REPO]["step0"]["deep/er/model.safetensors"] = save({"w": torch.ones(3)})
    checkpoint = open_checkpoint(f"{REPO}@step0")
    assert torch.equal(checkpoint.read(HEAD), state(0)[HEAD])
    assert asked(hub) == {"revision": 1, "config.json": 1, "model.safetensors.index.json": 1, "head": 2}
    index = json.dumps({"weight_map": {"w": "deep/er/model.safetensors"}}).encode()
    hub.add(REPO, "nested", {**hub.revisions[REPO]["step0"], "model.safetensors.index.json": index})
    assert torch.equal(open_checkpoint(f"{REPO}@nested").read("w"), torch.ones(3))
    assert "tree" not in asked(hub)


def test_a_suite_of_folders_lists_their_revision_once_and_hands_one_listing_on(hub):
    hub.lists_blobs = True
    kept = {f"step{step}/{name}": data for step in STEPS for name, data in files(step, CONFIGS["names alone"]).items()}
    hub.add(REPO, "main", kept)
    suite = list_suite(REPO)
    asked(hub)
    assert [torch.equal(suite.open(one).read(HEAD), state(one.step)[HEAD]) for one in suite.entries] == [True] * 4
    assert asked(hub)["revision"] == 1
    handed = pickle.loads(pickle.dumps(suite))
    assert pickle.dumps(suite).count(shard(7).encode()) <= 4 * len(STEPS)  # by path, url, name and place
    assert torch.equal(handed.open(handed.entries[1]).read(HEAD), state(10)[HEAD])
    assert not {"revision", "tree"} & set(asked(hub))


def test_a_small_file_is_shared_by_revisions_where_it_has_the_hash_that_is_listed(hub):
    fill(hub, CONFIGS["names alone"])
    other = json.dumps({"vocab_size": VOCAB + 1}).encode()
    hub.revisions[REPO]["step20"]["config.json"] = other
    assert [open_checkpoint(f"{REPO}@step{step}").config["vocab_size"] for step in (0, 20, 30)] == [
        VOCAB, VOCAB + 1, VOCAB,
    ]  # fmt: skip
    assert asked(hub)["config.json"] == 2
