"""Stores in object storage: a real S3 server on loopback, one that drops requests, and one that stops."""

import itertools
import socket
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
from trainhooks.store.format.kept import kept_place
from trainhooks.store.maintenance.copying import snapshot
from trainhooks.store.maintenance.verify import verify
from trainhooks.store.storage.local import LocalStorage
from trainhooks.store.storage.object import ObjectStorage
from trainhooks.store.storage.opening import open_storage
from trainhooks.store.storage.retries import tried_again

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
    storage = ObjectStorage(url)
    large = bytes(range(256)) * 4096 * 20
    assert storage.put("a/b", b"hello").size == 5
    assert storage.put("a/c/large", large).size == len(large)
    assert (storage.read("a/b"), storage.read("a/b", 1, 3), storage.read("a/b", 2)) == (b"hello", b"el", b"llo")
    assert (storage.read("a/b", 3, 99), storage.read_end("a/b", 2), storage.read_end("a/b", 99)) == (
        b"lo",
        b"lo",
        b"hello",
    )
    assert bytes(storage.mmap("a/c/large")) == large
    assert sorted(storage.list("a")) == ["a/b", "a/c/large"]
    assert list(storage.list_dir("a")) == ["b", "c"]
    assert storage.exists("a/c")
    assert not storage.exists("a/d")
    assert storage.size() == 5 + len(large)
    with pytest.raises(FileNotFoundError):
        storage.read("a/d")
    with pytest.raises(FileNotFoundError):
        storage.mmap("a/d")
    storage.delete("a")
    assert list(storage.list()) == []


def test_conditional_writes(url):
    storage = ObjectStorage(url)
    assert storage.put_if_match("lock", b"one", current=None)
    assert not storage.put_if_match("lock", b"two", current=None)
    assert not storage.put_if_match("lock", b"two", current=b"other")
    assert storage.put_if_match("lock", b"two", current=b"one")
    assert not storage.delete_if_match("lock", current=b"one")
    assert storage.delete_if_match("lock", current=b"two")
    assert not storage.put_if_match("lock", b"three", current=b"two")


def test_a_run_in_object_storage_reads_back_resumes_and_is_sound(url, sparse_run):
    writer = StoreWriter(url, sparse_run.layout)
    sparse_run.append(writer, range(11))
    with pytest.raises(StoreError, match="is being written by process"):
        StoreWriter(url, sparse_run.layout, mode="resume")
    store = open_store(url)
    assert store.steps.tolist() == list(range(11))
    assert store.holder is not None
    writer.release()
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
    monkeypatch.setattr("trainhooks.store.storage.object.PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(
        "trainhooks.store.storage.object._client",
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


class OneBadAnswer(BaseHTTPRequestHandler):
    """Passes requests on, but answers the first one of a kind in a bad way."""

    protocol_version = "HTTP/1.1"
    target = method = way = ""
    hit = False

    def log_message(self, *_):
        pass

    def answer(self):
        import http.client

        cls = type(self)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bad, cls.hit = (self.command == cls.method and not cls.hit), cls.hit or self.command == cls.method
        if bad and cls.way == "dropped":
            return self.drop()
        if bad and cls.way.isdigit():
            code = {"400": "RequestTimeout", "429": "TooMany", "500": "InternalError", "503": "SlowDown"}[cls.way]
            return self.reply(int(cls.way), [], f"<Error><Code>{code}</Code></Error>".encode())
        passed = http.client.HTTPConnection(cls.target, timeout=30)
        passed.request(self.command, self.path, body, dict(self.headers))
        answer = passed.getresponse()
        content = answer.read()
        passed.close()
        if bad and cls.way == "answer lost":
            return self.drop()
        own = ("transfer-encoding", "connection", "date", "server", "content-length")
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in own]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        cut = len(content) // 2 if bad and cls.way == "cut" else None
        self.reply(answer.status, headers, content, length=length, cut=cut)

    def reply(self, status, headers, content, *, length=None, cut=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.drop()

    def drop(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer


@pytest.fixture
def bad_once(endpoint, monkeypatch):
    """Sets which method gets which bad answer, once; `hit` says whether it did."""
    handler = type("Handler", (OneBadAnswer,), {"target": endpoint.removeprefix("http://")})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield handler
    server.shutdown()
    server.server_close()


WAYS = ("dropped", "answer lost", "400", "429", "500", "503")
REQUESTS = {
    "put": ("PUT", WAYS, lambda storage: storage.put("new", b"x").size, 1),
    "delete": ("POST", WAYS, lambda storage: (storage.delete("a"), storage.exists("a"))[1], False),
    "read": ("GET", WAYS, lambda storage: storage.read("a"), b"content"),
    "range": ("GET", ("dropped", "400"), lambda s: s.read("a", 1, 3), b"on"),
    "view": ("GET", ("dropped", "400"), lambda s: bytes(s.mmap("a")), b"content"),
    "list": ("GET", ("dropped", "400"), lambda s: list(s.list()), ["a", "lock"]),
    "children": ("GET", ("dropped", "400"), lambda s: list(s.list_dir()), ["a", "lock"]),
    "exists": ("HEAD", WAYS, lambda s: s.exists("a"), True),
    "make": ("PUT", WAYS, lambda s: (s.put_if_match("one", b"me", current=None), s.read("one")), (True, b"me")),
    "swap": ("PUT", WAYS, lambda s: (s.put_if_match("lock", b"me", current=b"held"), s.read("lock")),
             (True, b"me")),
    "look and swap": ("GET", ("dropped", "400"), lambda s: s.put_if_match("lock", b"me", current=b"held"), True),
    "empty and remove": ("PUT", ("answer lost",), lambda s: s.delete_if_match("lock", current=b"held"), True),
    "remove": ("POST", WAYS, lambda s: (s.delete_if_match("lock", current=b"held"), s.exists("lock")),
               (True, False)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, (_, ways, *_) in REQUESTS.items() for way in ways])
def test_one_bad_answer_of_any_kind_changes_nothing(url, bad_once, name, way):
    method, _, ask, wanted = REQUESTS[name]
    storage = ObjectStorage(url)
    storage.put("a", b"content")
    storage.put("lock", b"held")
    bad_once.method, bad_once.way, bad_once.hit = method, way, False
    assert ask(storage) == wanted
    assert bad_once.hit


@pytest.mark.parametrize(("method", "way"), [("PUT", "400"), ("PUT", "dropped"), ("POST", "503"), ("POST", "dropped")])
def test_an_object_sent_in_parts_is_sent_again(url, bad_once, method, way):
    storage = ObjectStorage(url)
    large = bytes(range(256)) * 4096 * 12
    bad_once.method, bad_once.way = method, way
    storage.put("large", large)
    assert bad_once.hit
    assert storage.read("large") == large


def test_a_body_cut_short_is_read_again(url, bad_once):
    storage = ObjectStorage(url)
    large = bytes(range(256)) * 4096 * 20
    storage.put("large", large)
    bad_once.method, bad_once.way = "GET", "cut"
    assert bytes(storage.mmap("large")) == large
    assert bad_once.hit


def test_a_list_goes_on_after_the_page_that_failed(url, monkeypatch):
    storage = ObjectStorage(url)
    names = [f"x/{number:02d}" for number in range(60)]
    for name in names:
        storage.put(name, b"")
    real, failures = storage._ob.list, iter(range(1, 3))

    def breaking(*args, **kwargs):
        pages = real(*args, **kwargs)
        yield from itertools.islice(pages, 1)
        if next(failures, None):
            raise storage._ob.exceptions.GenericError("HTTP error: error decoding response body")
        yield from pages

    monkeypatch.setattr(storage._ob, "list", breaking)
    assert list(storage.list("x")) == names
    assert next(failures, None) is None


def test_what_another_try_cannot_mend_is_not_tried_again():
    def ask():
        asked.append(1)
        raise RuntimeError("Server returned non-2xx status code: 400 Bad Request: <Code>InvalidArgument</Code>")

    asked = []
    with pytest.raises(RuntimeError, match="InvalidArgument"):
        tried_again(ask, failures=(RuntimeError,), seconds=60.0)
    assert asked == [1]


def test_a_delete_whose_answer_was_lost_leaves_what_another_wrote(url, monkeypatch):
    storage = ObjectStorage(url)
    storage.put("lock", b"held")
    real, said = storage._ob.delete, []

    def losing(client, key):
        real(client, key)
        if not said:
            said.append(key)
            storage.put("lock", b"another's")
            raise storage._ob.exceptions.GenericError("HTTP error: connection closed before message completed")

    monkeypatch.setattr(storage._ob, "delete", losing)
    assert storage.delete_if_match("lock", current=b"held")
    assert storage.read("lock") == b"another's"


@pytest.mark.parametrize(("given", "tries"), [(None, 5), (6.0, 1)])
def test_a_sixth_of_the_patience_is_for_the_clients_own_tries(url, given, tries):
    client = ObjectStorage(url, patience_seconds=given)._client
    assert client.retry_config["retry_timeout"] == timedelta(seconds=tries)


def test_urls_and_paths_are_told_apart(tmp_path):
    from pathlib import Path

    storage = open_storage(tmp_path.as_uri())
    assert isinstance(storage, LocalStorage)
    assert storage.path == tmp_path
    with pytest.raises(StoreError, match="pass it as text"):
        open_storage(Path("s3://bucket/prefix"))
    with pytest.raises(StoreError, match="cannot be opened"):
        open_storage("nonsense://bucket")
    with pytest.raises(StoreError, match="outlives its process"):
        open_storage("memory://")


def test_what_a_cut_takes_is_kept_by_the_server_and_comes_back(url, sparse_run, tmp_path, monkeypatch):
    writer = StoreWriter(url, sparse_run.layout)
    sparse_run.append(writer, range(14))
    writer.release()
    with monkeypatch.context() as patch:
        patch.setattr("trainhooks.store.format.kept.MOST_COPIED", 0)  # none of its bytes may pass through here
        writer = StoreWriter(url, sparse_run.layout, mode="resume", restart_step=5)
    sparse_run.append(writer, range(6, 8))
    writer.close()
    assert verify(url).sound
    assert "8 records of attempt 0, steps 6 to 13" in open_store(url).kept[0]
    snapshot(kept_place(url), out=tmp_path / "copy")
    copy = open_store(tmp_path / "copy")
    assert verify(tmp_path / "copy").problems == ()
    assert copy.steps.tolist() == list(range(14))
    np.testing.assert_array_equal(copy.output_embedding(12), sparse_run.matrix(12))
    writer = StoreWriter(url, sparse_run.layout, mode="resume", restart_step=7)
    sparse_run.append(writer, range(8, 16))
    writer.close()
    assert open_store(url).kept == []
    assert not [key for key in ObjectStorage(url).list() if ".kept-" in key]


def test_a_run_in_object_storage_is_watched_while_it_writes_and_until_it_ends(url, capsys):
    """From another terminal: a look at what is there, then looks that follow the run to its end."""
    import json

    from loops import COUNTS, TinyLM, batches, train

    import trainhooks as th
    from trainhooks.cli import app

    def looks(*options):
        with pytest.raises(SystemExit) as ended:
            app(["watch", url, "--json", *options])
        assert ended.value.code == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    model = TinyLM()
    with th.Recorder(model, store=url, counts=COUNTS) as recorder:
        train(model, batches(3), recorder)
        recorder.flush()
        (seen,) = looks("--once")
        assert (seen["step"], seen["complete"], seen["path"]) == (3, False, url)
        assert seen["rate"] is None  # takes two looks
        assert set(seen["correlations"]) == {"held-out Spearman", "its null, permuted", "row norm alone"}
        following = threading.Thread(target=lambda: ended.extend(looks("--every", "0.05")))
        ended = []
        following.start()
        train(model, batches(5), recorder, first=3)
    following.join()
    steps = [look["step"] for look in ended]
    assert steps == sorted(steps)
    assert (steps[-1], ended[-1]["complete"]) == (5, True)
