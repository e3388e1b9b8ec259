"""A hub on loopback: revisions, listings with hashes, files by range; it counts bytes and fails when told to."""

import hashlib
import json
import re
import threading
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Hub:
    """`revisions[repo][revision][file]` are bytes; `faults` are taken one a file request, in order.

    A fault is a status (500, 429, 401), a status with its headers, or "stall" (until it is asked again), "whole"
    (ignores Range: 200), "shifted" (Content-Range of other bytes), "wrong total", "early" (closes half-way), "gzip"
    (says it is encoded), "redirect". `fetched` counts body bytes of files, `listed` of listings, before they are sent:
    whoever has them finds them counted. `requests` are (path, headers). `answers[what]`, body and headers, stand for an
    API call's own answer (a Location makes it a redirect); `claims[repo, file]` for what the listing says of a file.
    `lists_blobs`: a revision's description lists all its files with sizes and hashes, where that is asked for.
    `commits[repo]`, (title, files) with the newest first, are the commits of each branch; `tags` are the revisions, as
    (repo, name), that are no branches.
    `plain[path]` are files that are no repository's, in folders that list nothing.
    `drips`, "head" or "body", makes that part of each answer come a byte at a time, for two seconds.
    """

    def __init__(self) -> None:
        self.revisions = {}
        self.faults = deque()
        self.fetched = self.listed = 0
        self.requests = []
        self.asked_again = threading.Event()
        self.redirect_to = ""
        self.answers = {}
        self.claims = {}
        self.drips = ""
        self.lists_blobs = False
        self.commits = {}
        self.tags = set()
        self.plain = {}

    def add(self, repo, revision, files):
        self.revisions.setdefault(repo, {})[revision] = dict(files)

    def files(self, repo, revision):
        """A revision's files by its name or its commit; None where there is no such thing."""
        titles = {commit(repo, title): files for title, files in self.commits.get(repo, ())}
        if revision in titles:
            return titles[revision]
        named = self.revisions.get(repo, {})
        return next((files for name, files in named.items() if revision in (name, commit(repo, name))), None)


def commit(repo, revision):
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((path, dict(self.headers)))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree|refs|commits)(?:/(.+))?", path):
            return self.api(*match.groups())
        if path == "/api/models":
            author = parse_qs(urlsplit(self.path).query).get("author", [""])[0]
            return self.listing([{"id": repo} for repo in self.hub.revisions if repo.startswith(f"{author}/")])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(*match.groups())
        if path in self.hub.plain:
            return self.file(self.hub.plain[path])
        return self.answer(404, b"")

    def api(self, repo, what, revision):
        if what in self.hub.answers:
            body, headers = self.hub.answers[what]
            return self.answer(302 if "Location" in headers else 200, body, headers, count=False)
        if what == "refs":
            names = self.hub.revisions.get(repo, {})
            refs = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit(repo, n)} for n in names]
            tags = [ref for ref in refs if (repo, ref["name"]) in self.hub.tags]
            return self.listing({"branches": [r for r in refs if r not in tags], "tags": tags, "converts": []})
        if what == "commits":
            titles = [title for title, _ in self.hub.commits.get(repo, ())]
            return self.listing([{"id": commit(repo, title), "title": title} for title in titles])
        revision, _, under = revision.partition("/")
        files = self.hub.files(repo, revision)
        if files is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if what == "revision":
            names = self.hub.revisions.get(repo, {})
            sha = next((commit(repo, n) for n in names if revision in (n, commit(repo, n))), revision)
            siblings = [sibling(name, data) for name, data in files.items()] if self.wants_blobs() else []
            about = {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings, "tags": [], "private": False}
            return self.listing(about)
        listed = [(name, data) for name, data in files.items() if name.rpartition("/")[0] == under]
        claims, above = self.hub.claims, f"{under}/" if under else ""
        below = {
            name[len(above) :].split("/")[0] for name in files if name.startswith(above) and "/" in name[len(above) :]
        }
        folders = [{"type": "directory", "path": above + name, "oid": "0" * 40, "size": 0} for name in sorted(below)]
        return self.listing([*folders, *(claims.get((repo, name)) or describe(name, data) for name, data in listed)])

    def wants_blobs(self):
        return self.hub.lists_blobs and "blobs=true" in urlsplit(self.path).query

    def resolve(self, repo, revision, name):
        data = (self.hub.files(repo, revision) or {}).get(name)
        if data is None:
            return self.answer(404, b"")
        return self.file(data)

    def file(self, data):
        fault = self.hub.faults.popleft() if self.hub.faults else None
        match = RANGE.fullmatch(self.headers.get("Range", ""))
        start, last = (int(match[1]), int(match[2])) if match else (0, len(data) - 1)
        body, total, status = data[start : last + 1], len(data), 206
        headers = {}
        self.hub.asked_again.set()
        if isinstance(fault, int):
            fault = fault, {"Retry-After": "0"}
        if isinstance(fault, tuple):
            return self.answer(fault[0], b"", fault[1])
        if fault == "redirect":
            return self.answer(302, b"", {"Location": self.hub.redirect_to + self.path})
        if fault == "stall":
            self.hub.asked_again.clear()
            self.hub.asked_again.wait(60)
        if fault == "shifted":
            start, last = start + 1, last + 1
        if fault == "wrong total":
            total += 1
        if fault == "gzip":
            headers["Content-Encoding"] = "gzip"
        if fault == "whole" or match is None:
            body, status = data, 200
        else:
            headers["Content-Range"] = f"bytes {start}-{last}/{total}"
        return self.answer(status, body, headers, cut=len(body) // 2 if fault == "early" else None)

    def listing(self, content):
        body = json.dumps(content).encode()
        self.hub.listed += len(body)
        self.answer(200, body, {"Content-Type": "application/json"}, count=False)

    def drip(self, text):
        for byte in text[:100]:
            self.wfile.write(bytes([byte]))
            time.sleep(0.02)
        raise BrokenPipeError

    def answer(self, status, body, headers=None, *, cut=None, count=True):
        try:
            if self.hub.drips == "head":
                self.drip(b"HTTP/1.1 200 OK\r\n" + b"X-More: 1\r\n" * 10)
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if self.hub.drips == "body":
                self.drip(body)
            for at in range(0, len(body[:cut]), 1 << 16):
                block = body[:cut][at : at + (1 << 16)]
                self.hub.fetched += len(block) if count else 0
                self.wfile.write(block)
            if cut is not None:
                self.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def describe(name, data):
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": name, "size": len(data), "oid": blob}
    if not name.endswith(".json"):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def sibling(name, data):
    entry = describe(name, data)
    found = {"rfilename": name, "size": len(data), "blobId": entry["oid"]}
    return found | ({"lfs": {"sha256": entry["lfs"]["oid"], "size": len(data)}} if "lfs" in entry else {})


def serving(hub):
    """The address a hub is served at."""
    return listening(type("Bound", (Handler,), {"hub": hub}))


@contextmanager
def listening(handler):
    """The address on loopback that a handler of requests listens at."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
