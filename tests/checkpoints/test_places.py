"""Where checkpoints lie: subfolders, commits, tags, repositories, addresses, HTTP, object stores, the hub's cache."""

import json
import tracemalloc
import urllib.request
import warnings
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import torch
from hub_client import online
from hub_server import Hub, commit, listening, serving
from safetensors.torch import save, save_file

from trainhooks.checkpoints.audit.audit import audit_suite
from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.checkpoints.places import HubPlace, hub_place, repository_of
from trainhooks.checkpoints.sources import http_files
from trainhooks.checkpoints.suite import list_suite

KEY = "lm_head.weight"
DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


def weights(value):
    return {KEY: torch.full((6, 2), float(value))}


def files(value, under=""):
    return {f"{under}model.safetensors": save(weights(value)), f"{under}config.json": b"{}"}


def values(suite):
    """Each step with the number that its matrix holds."""
    return [(entry.step, int(suite.open(entry).read(KEY)[0, 0])) for entry in suite.entries]


@pytest.fixture(scope="module")
def address():
    hub = Hub()
    for step in (0, 20):
        hub.add("org/tagged", f"step{step}", files(step))
        hub.tags.add(("org/tagged", f"step{step}"))
        hub.add(f"org/one-1B-step-{step}k", "main", files(step))
    hub.add("org/tagged", "main", files(99))
    folders = {name: data for step in (20, 3) for name, data in files(step, f"step-{step:04}/").items()}
    hub.add("org/folders", "main", {"README.md": b"", **folders})
    inner = {name: data for step in (1, 2) for name, data in files(step, f"checkpoints/step_{step}/").items()}
    hub.add("org/inner", "main", {"config.json": b"{}", **inner})
    hub.add("org/files", "main", {f"checkpoints/step_{step}.safetensors": save(weights(step)) for step in (5, 40)})
    hub.add("org/commits", "main", files(100))
    hub.commits["org/commits"] = [
        ("Saving Evaluation Results -- Step 100", files(100)),
        ("Saving HF Model -- Step 100", files(-1)),
        ("Saving HF Model -- Step 0", files(0)),
        ("initial commit", {}),
    ]
    hub.add("org/hand", "main", files(3))
    hub.commits["org/hand"] = [
        ("Upload 3 files", files(-3)),
        ("stage2 step 500", files(2)),
        ("stage1 step 500", files(1)),
        ("Update README.md (#7)", files(-7)),
    ]
    hub.add("org/nothing", "main", {"README.md": b""})
    with serving(hub) as address:
        yield address


@pytest.fixture
def hub(address, tmp_path):
    with online(address, tmp_path / "home"):
        yield


def test_tags_are_read_as_branches_are(hub):
    suite = list_suite("org/tagged")
    assert values(suite) == [(0, 0), (20, 20)]
    assert suite.unread == ("main",)


@pytest.mark.parametrize(("repo", "steps"), [("org/folders", [3, 20]), ("org/inner", [1, 2]), ("org/files", [5, 40])])
def test_subfolders_and_files_of_one_revision(hub, repo, steps):
    assert values(list_suite(repo)) == [(step, step) for step in steps]
    assert list_suite(f"{repo}@main").steps == tuple(steps)


def test_the_last_commit_of_each_step(hub):
    suite = list_suite("org/commits")
    assert values(suite) == [(0, 0), (100, 100)]
    assert suite.entries[1].location == f"org/commits@{commit('org/commits', 'Saving Evaluation Results -- Step 100')}"


def test_a_number_in_a_title_is_no_step_and_stages_stay_apart(hub):
    suite = list_suite("org/hand")
    assert values(suite) == [(500, 1), (1000, 2)]
    assert [entry.stage for entry in suite.entries] == ["stage1", "stage2"]


def test_one_repository_a_step(hub, tmp_path):
    assert values(list_suite("org/one-1B-step-*")) == [(0, 0), (20_000, 20)]
    (tmp_path / "list.txt").write_text("org/one-1B-step-20k\nhf://org/one-1B-step-0k\norg/tagged@step20 # seven\n")
    with pytest.raises(ValueError, match="several patterns"):
        list_suite(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("org/one-1B-step-20k\nhf://org/one-1B-step-0k@main\n")
    assert values(list_suite(tmp_path / "list.txt")) == [(0, 0), (20_000, 20)]


@pytest.mark.parametrize("place", ["hf://org/folders", "hf://org/folders@main", "https://huggingface.co/org/folders"])
def test_a_repository_by_its_addresses(hub, place):
    assert list_suite(place).steps == (3, 20)


def test_a_repository_without_steps_says_what_it_has(hub):
    with pytest.raises(ValueError, match=r"no step can be read .*found main"):
        list_suite("org/nothing")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("org/name", HubPlace("org/name")),
        ("org/name@step1", HubPlace("org/name", "step1")),
        ("org/name@refs/pr/1", HubPlace("org/name", "refs/pr/1")),
        ("org/name@main:a/b", HubPlace("org/name", "main", "a/b")),
        ("hf://org/name@step1", HubPlace("org/name", "step1")),
        ("hf://org/name@refs/pr/1/a", HubPlace("org/name", "refs/pr/1", "a")),
        ("hf://org/name/a/b", HubPlace("org/name", "", "a/b")),
        ("https://huggingface.co/org/name/tree/step1/a", HubPlace("org/name", "step1", "a")),
        ("https://hf.co/org/name/", HubPlace("org/name")),
        ("https://huggingface.co/org/name/blob", None),
        ("https://elsewhere.org/org/name", None),
        ("s3://bucket/name", None),
        ("/abs/path", None),
        ("name", None),
    ],
)
def test_how_places_are_written(text, place):
    assert hub_place(text) == place
    assert place is None or hub_place(str(place)) == HubPlace(
        place.repo, place.revision or ("main" if place.folder else ""), place.folder
    )


def test_the_repository_of_a_downloaded_folder(tmp_path):
    snapshot = tmp_path / "models--EleutherAI--pythia-12b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert repository_of(str(snapshot)) == HubPlace("EleutherAI/pythia-12b")
    assert repository_of(str(tmp_path)) is None
    assert repository_of("EleutherAI/pythia-12b@step1").repo == "EleutherAI/pythia-12b"


def test_offline_the_cache_is_listed(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--org--name"
    for step in (1, 30):
        sha = f"{step:040x}"
        (cached / "snapshots" / sha).mkdir(parents=True)
        save_file(weights(step), cached / "snapshots" / sha / "model.safetensors")
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / f"step{step}").write_text(sha)
    assert values(list_suite("org/name")) == [(1, 1), (30, 30)]


class Ranged(SimpleHTTPRequestHandler):
    """Serves ranges; lists folders unless told not to."""

    lists = True

    def log_message(self, *_):
        pass

    def list_directory(self, path):
        return super().list_directory(path) if self.lists else self.send_error(404)

    def do_GET(self):
        wanted = self.headers.get("Range", "")
        path = self.translate_path(self.path)
        if not wanted or not self.path.rstrip("/").endswith((".safetensors", ".json")):
            return super().do_GET()
        start, last = map(int, wanted.removeprefix("bytes=").split("-"))
        with open(path, "rb") as file:
            data = file.read()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - start))
        self.end_headers()
        return self.wfile.write(data[start : last + 1])


def http(folder, *, lists):
    return listening(partial(type("Bound", (Ranged,), {"lists": lists}), directory=str(folder)))


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    root = tmp_path / "www"
    for step in (1000, 20):
        folder = root / "run" / f"step{step}-unsharded"
        folder.mkdir(parents=True)
        save_file(weights(step), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"vocab_size": 6}))
    (root / "run" / "notes.txt").write_text("")
    return root


def test_a_folder_behind_http_that_lists(served):
    with http(served, lists=True) as address:
        suite = list_suite(f"{address}/run/")
        assert suite.kind == "url"
        assert values(suite) == [(20, 20), (1000, 1000)]
        assert suite.open(suite.entries[0]).config == {"vocab_size": 6}
        one = open_checkpoint(f"{address}/run/step20-unsharded/model.safetensors")
        assert torch.equal(one.read(KEY), weights(20)[KEY])


def test_folders_behind_http_whose_names_need_quoting(served):
    for step in (7, 8):
        folder = served / "odd" / f"lauf #1 é step {step}"
        folder.mkdir(parents=True)
        save_file(weights(step), folder / "model.safetensors")
    with http(served, lists=True) as address:
        assert values(list_suite(f"{address}/odd")) == [(7, 7), (8, 8)]
        with pytest.raises(CheckpointError, match="cannot be read"):
            open_checkpoint(f"{address}/odd/é/")


def test_a_link_that_is_no_address_is_passed_over():
    assert http_files._inside("http://host/run/", "http://[") == ""
    assert http_files._inside("http://host/run/", "step1/") == "step1/"


MEGA = 1 << 20
LISTINGS = {
    "links": ("text/html", b"<a href=x>" * MEGA),
    "tags": ("text/html", b"<b>" * MEGA),
    "attributes": ("text/html", b"<a " + b"a=1 " * (MEGA // 2) + b">"),
    "a long link": ("text/html", b"<a href='" + b"../" * MEGA + b"'>x</a>"),
    "never closed": ("text/html", b"<a href='" + b"x" * 3 * MEGA),
    "objects": ("application/json", b"[" + b'{"a":1},' * MEGA + b"{}]"),
    "depth": ("application/json", b"[" * MEGA),
    "a number": ("application/json", b"[" + b"9" * 4 * MEGA + b"]"),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_a_listing_that_is_made_to_harm_is_one_error(monkeypatch, name):
    monkeypatch.setattr(http_files, "http_text", lambda url: LISTINGS[name])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="http://host/run/"):
            http_files.list_http("http://host/run/")
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


def test_names_that_lead_out_of_a_listing_are_passed_over(monkeypatch):
    odd = ["..", ".", "../x", "/etc", "a/b", "http://other/x", "step1"]
    as_json = json.dumps([{"name": name, "type": "directory"} for name in odd]).encode()
    as_html = "".join(f"<a href='{name}/'>{name}</a>" for name in odd).encode()
    for kind, body in (("application/json", as_json), ("text/html", as_html)):
        monkeypatch.setattr(http_files, "http_text", lambda url, told=(kind, body): told)
        assert http_files.list_http("http://host/run/") == ([], ["step1"])


def test_files_with_one_etag_are_told_apart(served, monkeypatch):
    monkeypatch.setattr(Ranged, "end_headers", _tagged)
    for step in (20, 1000):
        moved = torch.arange(12.0).reshape(6, 2).pow(1 + step / 1000)
        save_file({KEY: moved}, served / "run" / f"step{step}-unsharded" / "model.safetensors")
    with http(served, lists=True) as address:
        suite = list_suite(f"{address}/run/")
        first, second = (suite.open(entry).identity(KEY) for entry in suite.entries)
        assert first != second
        assert not [finding for finding in audit_suite(suite).findings if finding.kind == "identical"]


def _tagged(handler):
    handler.send_header("ETag", '"65a0-b8"')
    SimpleHTTPRequestHandler.end_headers(handler)


def test_a_table_of_addresses_that_list_nothing(served):
    with http(served, lists=False) as address:
        rows = [f"{step},{address}/run/step{step}-unsharded/" for step in (1000, 20)]
        (served / "official.csv").write_text("Step,Checkpoint Directory\n" + "\n".join(rows) + "\n")
        for place in (str(served / "official.csv"), f"{address}/official.csv"):
            assert values(list_suite(place)) == [(20, 20), (1000, 1000)]
        with pytest.raises(ValueError, match=r"lists no files\. Give a manifest"):
            list_suite(f"{address}/run")
        with pytest.raises(CheckpointError, match=r"has none of model\.safetensors"):
            open_checkpoint(f"{address}/nothing/")


def test_schemes_that_are_not_read():
    with pytest.raises(ValueError, match="ftp:// is not read"):
        list_suite("ftp://host/run")
    with pytest.raises(CheckpointError, match="is not read"):
        open_checkpoint("ftp://host/run/step1")


def test_a_bucket(tmp_path, monkeypatch):
    obstore = pytest.importorskip("obstore.store") and pytest.importorskip("obstore")
    moto_server = pytest.importorskip("moto.server")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    settings = {"ACCESS_KEY_ID": "none", "SECRET_ACCESS_KEY": "none", "REGION": "us-east-1", "ENDPOINT_URL": address}
    for key, value in settings.items():
        monkeypatch.setenv(f"AWS_{key}", value)

    try:
        urllib.request.urlopen(urllib.request.Request(f"{address}/suites", method="PUT")).close()
        bucket = obstore.store.from_url("s3://suites", client_options={"allow_http": True})
        for step in (1000, 20):
            for name, data in files(step, f"run/step{step}/").items():
                obstore.put(bucket, name, data)
        suite = list_suite("s3://suites/run")
        assert values(suite) == [(20, 20), (1000, 1000)]
        one = open_checkpoint("s3://suites/run/step20/model.safetensors")
        assert torch.equal(one.read(KEY), weights(20)[KEY])
        with pytest.raises(ValueError, match=r"cannot be listed|it is empty"):
            list_suite("s3://absent/run")
    finally:
        server.stop()


class Bucket(BaseHTTPRequestHandler):
    """Google's XML interface for one bucket: listings by prefix, and ranges."""

    held: dict

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = urlsplit(self.path)
        asked = {key: value[0] for key, value in parse_qs(parts.query).items()}
        if "list-type" in asked:
            return self.answer(200, self.listing(asked.get("prefix", "")).encode(), {"Content-Type": "application/xml"})
        data = self.held.get(unquote(parts.path).removeprefix("/suites/"))
        start, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        told = {"Content-Range": f"bytes {start}-{last}/{len(data)}", "ETag": '"1"', "Last-Modified": DATE}
        return self.answer(206, data[start : last + 1], told)

    def listing(self, prefix):
        inside = {name: name[len(prefix) :] for name in self.held if name.startswith(prefix)}
        folders = sorted({rest.split("/")[0] for rest in inside.values() if "/" in rest})
        below = "".join(f"<CommonPrefixes><Prefix>{prefix}{name}/</Prefix></CommonPrefixes>" for name in folders)
        files = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(self.held[name])}</Size><ETag>1</ETag>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for name, rest in inside.items()
            if "/" not in rest
        )
        return f"<ListBucketResult><Prefix>{prefix}</Prefix>{files}{below}</ListBucketResult>"

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def test_a_bucket_of_google(tmp_path, monkeypatch):
    pytest.importorskip("obstore", reason="buckets are read through obstore")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    held = {name: data for step in (1000, 20) for name, data in files(step, f"run/step{step}/").items()}
    with listening(type("Bound", (Bucket,), {"held": held})) as address:
        key = {
            "gcs_base_url": address,
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
        (tmp_path / "key.json").write_text(json.dumps(key))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)  # a client goes without TLS where this says http
        suite = list_suite("gs://suites/run")
        assert suite.kind == "url"
        assert values(suite) == [(20, 20), (1000, 1000)]
        assert suite.open(suite.entries[0]).config == {}
