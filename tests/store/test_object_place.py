"""Stores in object storage: a real S3 server on loopback, one that drops requests, and one that stops."""

import socketserver
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from trainhooks.sinks import Record, StoreSink
from trainhooks.store import Layout, StoreError, StoreWriter, Writing, open_store
from trainhooks.store.object_place import ObjectPlace
from trainhooks.store.place import LocalPlace, open_place
from trainhooks.store.verify import verify

from_url = pytest.importorskip("obstore.store").from_url
moto_server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def endpoint():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture
def url(endpoint, monkeypatch):
    import urllib.request

    for key, value in {
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }.items():
        monkeypatch.setenv(key, value)
    bucket = f"b{time.monotonic_ns()}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")).close()
    return f"s3://{bucket}/runs/one"


@contextmanager
def failing(endpoint: str, *, every: int) -> Iterator[tuple[str, threading.Event]]:
    """A proxy that answers each so many-th request with 503, and all of them once its event is set."""
    import http.client

    dead = threading.Event()
    count = iter(range(1, 1 << 30))

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if dead.is_set() or next(count) % every == 0:
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(endpoint.removeprefix("http://"))
            connection.request(self.command, self.path, body, dict(self.headers))
            reply = connection.getresponse()
            content = reply.read()
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                    self.send_header(name, value)
            length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass

    server: socketserver.BaseServer = Server(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", dead
    finally:
        server.shutdown()
        server.server_close()


def test_files_are_put_listed_read_and_deleted(url):
    place = ObjectPlace(url)
    large = bytes(range(256)) * 4096 * 20
    assert place.put("a/b", b"hello").size == 5
    assert place.put("a/c/large", large).size == len(large)
    assert (place.read("a/b"), place.read("a/b", 1, 3), place.read("a/b", 2)) == (b"hello", b"el", b"llo")
    assert (place.read("a/b", 3, 99), place.read_end("a/b", 2), place.read_end("a/b", 99)) == (b"lo", b"lo", b"hello")
    assert bytes(place.view("a/c/large")) == large
    assert sorted(place.list("a")) == ["a/b", "a/c/large"]
    assert list(place.children("a")) == ["b", "c"]
    assert place.exists("a/c")
    assert not place.exists("a/d")
    assert place.size() == 5 + len(large)
    with pytest.raises(FileNotFoundError):
        place.read("a/d")
    with pytest.raises(FileNotFoundError):
        place.view("a/d")
    place.delete("a")
    assert list(place.list()) == []


def test_conditional_writes(url):
    place = ObjectPlace(url)
    assert place.put_if("lock", b"one", current=None)
    assert not place.put_if("lock", b"two", current=None)
    assert not place.put_if("lock", b"two", current=b"other")
    assert place.put_if("lock", b"two", current=b"one")
    assert not place.delete_if("lock", current=b"one")
    assert place.delete_if("lock", current=b"two")
    assert not place.put_if("lock", b"three", current=b"two")


def test_a_run_in_object_storage_reads_back_resumes_and_is_sound(url, sparse_run):
    writer = StoreWriter(url, sparse_run.layout)
    sparse_run.append(writer, range(11))
    with pytest.raises(StoreError, match="is being written by process"):
        StoreWriter(url, sparse_run.layout, mode="resume")
    store = open_store(url)
    assert store.steps.tolist() == list(range(11))
    assert store.holder is not None
    writer.abandon()
    writer = StoreWriter(url, sparse_run.layout, mode="resume", restart_step=8)
    sparse_run.append(writer, range(9, 13))
    writer.close()
    store = open_store(url)
    assert store.complete
    assert store.steps.tolist() == list(range(13))
    for step in store.snapshot_steps:
        np.testing.assert_array_equal(store.output_embedding(step), sparse_run.matrix(step))
    found = verify(url)
    assert found.sound, found.problems
    assert store.summary()["disk_bytes"] > 0


def test_a_server_that_drops_every_fifth_request_loses_nothing(url, endpoint, run, monkeypatch):
    small = Layout(vocab=5, dim=2, groups=("whole",), sketch_size=3, block=2)
    run = replace(run, layout=small)
    with failing(endpoint, every=5) as (proxy, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        writer = StoreWriter(url, run.layout)
        for step in range(5):
            writer.append(step, {}, snapshot=run.matrix(step))
        writer.close()
        store = open_store(url)
        np.testing.assert_array_equal(list(store.snapshots), [run.matrix(step) for step in range(5)])
        assert verify(url).sound


@pytest.mark.parametrize("on_error", ["continue", "raise"])
def test_a_server_that_stops_gives_one_message_and_loses_nothing(url, endpoint, sparse_run, monkeypatch, on_error):
    # two tries more, however long they take: on a slow machine a short patience ends before the server does
    tries = {"max_retries": 2, "backoff": {"init_backoff": timedelta(milliseconds=1)}}
    monkeypatch.setattr(
        "trainhooks.store.object_place._client",
        lambda url, _: from_url(url, retry_config=tries, client_options={"allow_http": True}),
    )
    with failing(endpoint, every=1 << 40) as (proxy, dead):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        # a queue of one record: a record waits for the one before it, so what fails is heard of before the loop ends
        sink = StoreSink(url, writing=Writing(on_error=on_error, queue_bytes=1))
        sink.check()
        sink.open(sparse_run.layout)

        def write(step):
            sink.write(Record(step, {}, snapshot=sparse_run.matrix(step)))

        for step in range(3):
            write(step)
        sink.read()
        dead.set()
        said = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(3, 40):
                try:
                    write(step)
                except StoreError as error:
                    said.append(str(error))
            sink.close()
        said += [str(one.message) for one in caught if one.category is RuntimeWarning]
        assert len(said) == 1, said
        assert "everything up to step 2" in said[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert open_store(url).steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("given", "tries"), [(None, 15), (4.0, 2)])
def test_patience_is_half_for_tries(url, given, tries):
    client = ObjectPlace(url, patience_seconds=given)._client
    assert client.retry_config["retry_timeout"] == timedelta(seconds=tries)


def test_urls_and_paths_are_told_apart(tmp_path):
    from pathlib import Path

    place = open_place(tmp_path.as_uri())
    assert isinstance(place, LocalPlace)
    assert place.path == tmp_path
    with pytest.raises(StoreError, match="pass it as text"):
        open_place(Path("s3://bucket/prefix"))
    with pytest.raises(StoreError, match="cannot be opened"):
        open_place("nonsense://bucket")
    with pytest.raises(StoreError, match="outlives its process"):
        open_place("memory://")
