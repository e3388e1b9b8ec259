"""Reading from a hub, with the real client against a server on loopback that counts, fails and lies."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from types import SimpleNamespace

import hub_server
import huggingface_hub
import pytest
import torch
from hub_server import Hub, serving
from safetensors.torch import save

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.checkpoints.sources import hub as hub_module
from trainhooks.checkpoints.suite import list_suite
from trainhooks.checkpoints.tensor_cache import TensorCache

REPO, KEY = "org/model", "embed_out.weight"


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        KEY: torch.randn(4096, 256, generator=generator),  # 4 MiB
        **{f"layers.{i}.weight": torch.randn(256, 256, generator=generator) for i in range(40)},
    }


@pytest.fixture(scope="module")
def files():
    import io

    buffer = io.BytesIO()
    torch.save(weights(), buffer)
    return {"model.safetensors": save(weights()), "pytorch_model.bin": buffer.getvalue()}


@pytest.fixture
def client(monkeypatch, tmp_path):
    """huggingface_hub, online, with no wait between retries and a home of its own."""
    import huggingface_hub
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hub_module, "WAIT_SECONDS", 0.0)
    yield huggingface_hub
    huggingface_hub.close_session()


@pytest.fixture
def hub(client, files, monkeypatch):
    hub = Hub()
    hub.add(REPO, "main", {"model.safetensors": files["model.safetensors"], "config.json": b'{"vocab_size": 4096}'})
    hub.add(REPO, "step1", {"pytorch_model.bin": files["pytorch_model.bin"]})
    with serving(hub) as address:
        monkeypatch.setattr(client.constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(client.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.mark.parametrize(("place", "name"), [(REPO, "model.safetensors"), (f"hf://{REPO}@step1", "pytorch_model.bin")])
def test_the_head_costs_its_bytes_and_the_header(hub, files, tmp_path, place, name):
    checkpoint = open_checkpoint(place, cache=TensorCache(tmp_path))
    tensor = checkpoint.read(KEY)
    assert torch.equal(tensor, weights()[KEY])
    everything = hub.fetched + hub.listed
    assert tensor.nbytes <= everything < 1.01 * tensor.nbytes
    assert len(files[name]) > 3 * tensor.nbytes
    assert not any(path.endswith("/branches") for path, _ in hub.requests)


def test_the_cache_serves_the_second_reading_and_survives_damage(hub, tmp_path):
    cache = TensorCache(tmp_path)
    checkpoint = open_checkpoint(REPO, cache=cache)
    first = checkpoint.read(KEY)
    before = hub.fetched
    assert torch.equal(open_checkpoint(REPO, cache=cache).read(KEY), first)
    assert hub.fetched - before < 10_000, "the header alone"
    (stored,) = tmp_path.rglob("*.safetensors")
    os.truncate(stored, 5000)
    assert torch.equal(checkpoint.read(KEY), first)
    assert stored.stat().st_size > first.nbytes
    assert not list(tmp_path.rglob("*.partial"))


def test_a_repository_that_lists_anothers_hash_gets_nothing_of_it(hub, tmp_path, monkeypatch):
    cache = TensorCache(tmp_path)
    true = open_checkpoint(REPO, cache=cache).read(KEY)
    other = {**hub.revisions[REPO]["main"]}
    name = next(name for name in other if name.endswith(".safetensors"))
    other[name] = save({key: torch.zeros_like(tensor) for key, tensor in weights().items()})
    hub.add("org/other", "main", other)
    hub.claims["org/other", name] = hub_server.describe(name, hub.revisions[REPO]["main"][name])
    claiming = open_checkpoint("org/other", cache=cache)
    assert claiming.digests == open_checkpoint(REPO, cache=cache).digests
    assert not torch.equal(claiming.read(KEY), true)
    assert torch.equal(open_checkpoint(REPO, cache=cache).read(KEY), true)


def test_what_was_altered_in_the_cache_is_fetched_anew(hub, tmp_path):
    cache = TensorCache(tmp_path)
    true = open_checkpoint(REPO, cache=cache).read(KEY)
    (stored,) = tmp_path.rglob("*.safetensors")
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    assert torch.equal(open_checkpoint(REPO, cache=cache).read(KEY), true)


ANSWERS = {
    "size as text": ("tree", [{"type": "file", "path": "model.safetensors", "size": "9", "oid": "0"}], "size of '9'"),
    "negative size": ("tree", [{"type": "file", "path": "model.safetensors", "size": -1, "oid": "0"}], "size of '-1'"),
    "size of half": ("tree", [{"type": "file", "path": "model.safetensors", "size": 0.5, "oid": "0"}], "size of"),
    "no size": ("tree", [{"type": "file", "path": "model.safetensors", "oid": "0"}], "size of"),
    "no hash": ("tree", [{"type": "file", "path": "model.safetensors", "size": 9}], "is no text"),
    "path of a number": ("tree", [{"type": "file", "path": 3, "size": 9, "oid": "0"}], "is no text"),
    "no list": ("tree", {"a": 1}, "no list of files"),
    "null": ("tree", None, "no list of files"),
    "no commit": ("revision", {"sha": 3}, "names no commit"),
    "a path for a commit": ("revision", {"sha": "../../x"}, "names no commit"),
    "a list for a commit": ("revision", [], "names no commit"),
    "no JSON": ("tree", b"<html>", "no JSON"),
    "nested": ("tree", b"[" * 5_000, "no JSON"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_hubs_answer_that_is_none_is_an_error_of_ours(hub, case):
    what, answer, told = ANSWERS[case]
    hub.answers[what] = answer if isinstance(answer, bytes) else json.dumps(answer).encode(), {}
    with pytest.raises(CheckpointError, match=f"cannot be listed.*{told}"):
        open_checkpoint(REPO)


def test_refs_that_are_none_are_an_error_of_ours(hub):
    for answer in (b"[]", b'{"branches": 3}', b'{"branches": [{"name": 3}]}', b'{"tags": ["a"]}'):
        hub.answers["refs"] = answer, {}
        with pytest.raises(ValueError, match="revisions cannot be listed"):
            list_suite(REPO)


def test_answers_without_end_end(hub, monkeypatch):
    hub.answers["tree"] = (
        b"[]",
        {"Link": f'<{huggingface_hub.constants.ENDPOINT}/api/models/{REPO}/tree/x>; rel="next"'},
    )
    monkeypatch.setattr("trainhooks.checkpoints.sources.hub_answers.MOST_PAGES", 5)
    with pytest.raises(CheckpointError, match="more than 5 pages"):
        open_checkpoint(REPO)
    hub.answers["tree"] = b"[]", {"Link": '<http://localhost:1/next>; rel="next"'}
    with pytest.raises(CheckpointError, match="another host"):
        open_checkpoint(REPO)
    hub.answers["tree"] = b"[" + b" " * 5_000 + b"]", {}
    monkeypatch.setattr("trainhooks.checkpoints.sources.hub_answers.MOST_BYTES", 4_000)
    with pytest.raises(CheckpointError, match="has more than"):
        open_checkpoint(REPO)
    monkeypatch.setattr("trainhooks.checkpoints.sources.hub_answers.MOST_BYTES", 1 << 20)
    monkeypatch.setattr("trainhooks.checkpoints.sources.hub_answers.TOTAL_SECONDS", -1.0)
    with pytest.raises(CheckpointError, match="takes more than"):
        open_checkpoint(REPO)


WIDE = "\U0001f600"  # with it each character of a text takes four bytes
LISTINGS = {
    "a long text": (lambda: '["' + WIDE + "a" * ((16 << 20) - 20) + '"]', None),
    "many names": (lambda: "{" + ",".join(f'"{WIDE}{i:x}":{i}' for i in range(499_998)) + "}", None),
    "too many names": (lambda: "[" + ",".join(str(10**6 + i) for i in range(600_000)) + "]", "more than 500000 values"),
    "too many objects": (lambda: "[" + "{}," * 200_001 + "1]", "more than 200000 arrays"),
    "too long": (lambda: "[" + " " * (16 << 20) + "]", "more than 16 MiB"),
}


@pytest.mark.parametrize("listing", LISTINGS)
def test_no_listing_takes_200_megabytes(hub, listing):
    text, refused = LISTINGS[listing]
    hub.answers["tree"] = text().encode(), {}
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=refused or "holds no weights|no list"):
            open_checkpoint(REPO)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_hub_that_drips_is_given_up(hub, monkeypatch, part):
    checkpoint = open_checkpoint(REPO)
    hub.drips = part
    monkeypatch.setattr("trainhooks.checkpoints.sources.hub_answers.ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(hub_module, "MOST_SECONDS", 0.3)
    monkeypatch.setattr(hub_module, "SLOWEST", 1 << 30)
    with pytest.raises(CheckpointError, match="takes more than"):
        open_checkpoint(REPO)
    with pytest.raises(CheckpointError, match="sends less than"):
        checkpoint.read(KEY)
    hub.drips = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # connections that were given up, while none of them is used
        for thread in threading.enumerate():
            if thread.name == "trainhooks-hub":
                thread.join(10)
        gc.collect()


def test_redirects_without_end_end(hub):
    hub.answers["tree"] = b"", {"Location": "?again"}
    with pytest.raises(CheckpointError, match=r"cannot be listed.*TooManyRedirects"):
        open_checkpoint(REPO)
    del hub.answers["tree"]
    hub.redirect_to = huggingface_hub.constants.ENDPOINT
    hub.faults.extend(["redirect"] * 100)
    with pytest.raises(CheckpointError, match="TooManyRedirects"):
        open_checkpoint(REPO)


def test_identity_is_the_listings_hash_and_costs_nothing(hub, files):
    hub.add(REPO, "step2", hub.revisions[REPO]["main"])
    one, two, other = (open_checkpoint(REPO, revision=name) for name in ("main", "step2", "step1"))
    before = hub.fetched
    assert one.identity(KEY) == two.identity(KEY) != other.identity(KEY)
    assert hub.fetched == before
    assert one.identity(KEY, full=True) == other.identity(KEY, full=True), "the same values in another format"


@pytest.mark.parametrize("faults", [[500], [429, 503, 502], ["early"], ["early", 500, "early"]])
def test_passing_failures_are_retried(hub, tmp_path, faults):
    checkpoint = open_checkpoint(REPO, cache=TensorCache(tmp_path))
    hub.faults.extend(faults)
    before = hub.fetched
    assert torch.equal(checkpoint.read(KEY), weights()[KEY])
    assert hub.fetched - before < 4.3e6, "what had come is not fetched again"


def test_a_stalled_answer_is_asked_for_again(hub, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(REPO, cache=TensorCache(tmp_path))
    monkeypatch.setattr(hub_module, "TIMEOUT_SECONDS", 0.2)
    plain = hub_module.HubFile._request

    def request(self, progress):  # impatient once: a slow machine must not look like a server that stalls
        try:
            return plain(self, progress)
        finally:
            monkeypatch.setattr(hub_module, "TIMEOUT_SECONDS", 60.0)

    monkeypatch.setattr(hub_module.HubFile, "_request", request)
    hub.faults.append("stall")
    assert torch.equal(checkpoint.read(KEY), weights()[KEY])
    assert not hub.faults


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"ratelimit": '"resolvers";r=0;t=120', "Retry-After": "7"}, 121),
        ({"ratelimit": '"resolvers";r=3;t=120', "Retry-After": "7"}, 7),
        ({"Retry-After": "100000"}, 300),
        ({"Retry-After": "Mon, 23 Nov 2026 04:00:00 GMT"}, 60),
        ({}, 60),
    ],
)
def test_a_hub_that_limits_is_left_alone_as_long_as_it_asks(hub, tmp_path, monkeypatch, headers, seconds):
    checkpoint = open_checkpoint(REPO, cache=TensorCache(tmp_path))
    waits = []
    monkeypatch.setattr(hub_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=waits.append))
    hub.faults.extend([(429, headers), 500])
    assert torch.equal(checkpoint.read(KEY), weights()[KEY])
    assert waits == [seconds, 0], "what was asked for counts once"


def test_failures_that_last_are_an_error_with_the_reason(hub):
    checkpoint = open_checkpoint(REPO)
    hub.faults.extend([503] * (hub_module.RETRIES + 1))
    with pytest.raises(CheckpointError, match=r"did not come in 6 tries: the server answers 503"):
        checkpoint.read(KEY)


@pytest.mark.parametrize("fault", ["whole", "shifted", "wrong total", "gzip", 401, 404, 416])
def test_any_other_answer_is_refused_and_nothing_is_kept(hub, tmp_path, fault):
    checkpoint = open_checkpoint(REPO, cache=TensorCache(tmp_path))
    hub.faults.append(fault)
    requests = len(hub.requests)
    with pytest.raises(CheckpointError, match=r"ranges|no such file"):
        checkpoint.read(KEY)
    assert len(hub.requests) == requests + 1, "not tried again"
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_server_that_ignores_ranges_is_closed_unread(hub, client):
    hub.add(REPO, "big", {"model.safetensors": bytes(64 << 20)})
    hub.faults.append("whole")
    with pytest.raises(CheckpointError, match="got 200"):
        open_checkpoint(REPO, revision="big")
    assert hub.fetched < 32 << 20


def test_authorization_goes_to_the_hub_and_not_where_it_redirects(hub, tmp_path, monkeypatch):
    import huggingface_hub.utils._headers as headers

    monkeypatch.setattr(headers, "get_token", lambda: "hf_secret")
    other = Hub()
    other.revisions = hub.revisions
    with serving(other) as elsewhere:
        hub.redirect_to = elsewhere
        checkpoint = open_checkpoint(REPO, cache=TensorCache(tmp_path))
        hub.faults.append("redirect")
        assert torch.equal(checkpoint.read(KEY), weights()[KEY])
    asked = [names for _, names in hub.requests if "range" in {name.lower() for name in names}]
    assert asked
    assert all("Bearer hf_secret" in {*names.values()} for names in asked)
    assert len(other.requests) == 1
    assert "authorization" not in {name.lower() for name in other.requests[0][1]}


@pytest.mark.parametrize("place", ["org/absent", f"{REPO}@step9"])
def test_what_is_not_there_is_an_error(hub, place):
    with pytest.raises(CheckpointError, match="cannot be listed"):
        open_checkpoint(place)


def test_an_index_at_a_hub_cannot_lead_out(hub):
    hub.add(REPO, "bad", {"model.safetensors.index.json": b'{"weight_map": {"w": "../../x.safetensors"}}'})
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        open_checkpoint(REPO, revision="bad")


def test_offline_mode_is_respected(hub, client, monkeypatch):
    checkpoint = open_checkpoint(REPO)
    requests = len(hub.requests)
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="cannot be listed"):
        open_checkpoint(REPO)
    with pytest.raises(CheckpointError, match="offline"):
        checkpoint.read(KEY)
    assert len(hub.requests) == requests


def test_the_endpoint_comes_from_the_environment(hub, client, tmp_path):
    code = (
        "import sys; from trainhooks.checkpoints.opening import open_checkpoint\n"
        "print(open_checkpoint(sys.argv[1]).read(sys.argv[2]).shape)"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": client.constants.ENDPOINT,
        "HF_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, REPO, KEY], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "torch.Size([4096, 256])"
    assert len(list((tmp_path / "trainhooks" / "tensors").rglob("*.safetensors"))) == 1


def test_shards_in_a_subfolder_are_listed_when_an_index_names_them(hub, tmp_path):
    index = b'{"weight_map": {"w": "deep/er/a.safetensors"}}'
    shard = save({"w": torch.arange(6.0)})
    hub.add(REPO, "step2", {"model.safetensors.index.json": index, "deep/er/a.safetensors": shard})
    checkpoint = open_checkpoint(f"{REPO}@step2", cache=TensorCache(tmp_path))
    assert torch.equal(checkpoint.read("w"), torch.arange(6.0))
    fetched = hub.fetched
    assert len(checkpoint.identity("w")) > 64
    assert hub.fetched == fetched, "the subfolder's listing has the hash"


def test_a_cache_that_cannot_be_written_warns_and_gives_the_tensor(hub, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    checkpoint = open_checkpoint(REPO, cache=TensorCache(tmp_path / "file" / "tensors"))
    with pytest.warns(UserWarning, match="does not keep what was fetched"):
        assert torch.equal(checkpoint.read(KEY), weights()[KEY])
