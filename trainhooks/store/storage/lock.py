"""One writer a store: a lock file that says who holds it, and is taken over from the dead."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import threading
import time
import uuid
import weakref
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

from trainhooks.core.threads import start_threads
from trainhooks.store.errors import StoreError
from trainhooks.store.storage.base import LOCK, Storage
from trainhooks.store.storage.flag import Flag

HEARTBEAT_SECONDS = 10.0
WATCH_SECONDS = 60.0  # older versions beat every 15 s
READERS_SECONDS = 600.0
_LOOK_SECONDS = 1.0

logger = logging.getLogger("trainhooks")


@dataclass(frozen=True)
class Holder:
    """Who holds a store: host, process, when that process began (a process id is used again), and a sign of life.

    `namespace` is the one that the process id is of: two containers may have one host name. Empty in locks of versions
    that did not write it, and where the system has none.
    """

    host: str
    pid: int
    started: str
    token: str
    beat: float
    namespace: str = ""

    def __post_init__(self) -> None:
        texts = (self.host, self.started, self.token, self.namespace)
        if not (all(isinstance(text, str) for text in texts) and type(self.pid) is int):
            raise TypeError("no holder: host, started, token and namespace are texts, and the process id a number")
        object.__setattr__(self, "beat", float(self.beat))

    @staticmethod
    def parse(text: bytes) -> Holder | None:
        """The holder that a lock file names, whatever else it says; None where it cannot be read."""
        try:
            document = json.loads(text)
            return Holder(**{one.name: document[one.name] for one in fields(Holder) if one.name in document})
        except (ValueError, TypeError, OverflowError, RecursionError):
            return None

    def encode(self) -> bytes:
        """The lock file's content."""
        return json.dumps(asdict(self)).encode()

    @property
    def in_sight(self) -> bool:
        """Whether processes of its host and process-id namespace can be seen from here, so that a missing one is dead.

        A host that has started again since has other processes under the same ids, and so has another machine of the
        same name.
        """
        booted = self.started.rpartition("/")[0]
        same = self.host == socket.gethostname() and (not booted or booted == _boot())
        return same and self.namespace in ("", _namespace())

    @property
    def runs(self) -> bool:
        """Whether the process of a holder in sight still runs."""
        return process_start(self.pid) == self.started

    def __str__(self) -> str:
        mine = ", this process" if (self.host, self.pid) == (socket.gethostname(), os.getpid()) else ""
        return f"process {self.pid} on {self.host}{mine}"


def process_start(pid: int) -> str | None:
    """When a process of this host began, as text that no other process with its id has; None where none runs."""
    try:
        # what follows the command's name, which may hold anything: state, ..., and field 22, the start
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if stat[0] in "ZX" else f"{_boot()}/{stat[19]}"
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


@cache
def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


class Lock:
    """Holds a store from here to `release`, and gives a sign of life every ten seconds.

    It also ends when it is collected, or the process ends. A holder of which nothing can be seen from here (another
    host, another container) is watched for a minute at most, by this process' own monotonic clock: no two clocks are
    compared. Where it gives a sign of life the store is its own; where it gives none it is taken over.

    A lock file that is cut short binds nobody. One that is garbled names nobody, and is refused; with `mend` it is
    watched as if its holder were out of sight: a living writer of a garbled lock hears it at its next sign of life.

    Raises StoreError, which names the holder, where another writer holds the store.
    """

    def __init__(self, storage: Storage, *, mend: bool = False) -> None:
        me = process_start(os.getpid()) or ""
        self._storage = storage
        self._holder = Holder(socket.gethostname(), os.getpid(), me, uuid.uuid4().hex, time.time(), _namespace())
        self._stop = Flag()
        self.lost = False
        # before it is taken: an interrupt leaves no lock that nobody holds
        self._end = weakref.finalize(self, _release, storage, self._holder.token, os.getpid(), self._stop)
        heart = threading.Thread(
            target=_keep_alive, args=(weakref.ref(self), self._stop), name="trainhooks-lock", daemon=True
        )
        try:
            self._content = self._take(mend=mend)
            start_threads(heart)
        except BaseException:
            self._end()
            raise

    def release(self) -> None:
        """Let the store go. May be called again."""
        self._end()

    def check(self) -> None:
        """Raise StoreError where another writer has taken the store over (this process had stood still)."""
        if self.lost:
            raise StoreError(
                f"another writer has taken {self._storage} over while this process gave no sign of life. "
                'Stop this run, or go on from its last checkpoint with mode="resume" once the other has ended.'
            )

    def confirm(self) -> None:
        """As `check`, by what the lock file says now: before a file gets its name or goes."""
        try:
            found = self._storage.read(LOCK)
        except FileNotFoundError:
            found = b""
        # a holder's token stands in no other lock file: no need to parse it before each file
        self.lost = self.lost or self._holder.token.encode() not in found
        self.check()

    def beat(self) -> None:
        """Give a sign of life; notice where the lock has gone to another."""
        # another number each time, whatever the clock does: that it changes is the sign
        holder = replace(self._holder, beat=max(time.time(), self._holder.beat + 1e-3))
        content = holder.encode()
        if self._storage.put_if_match(LOCK, content, current=self._content):
            self._holder, self._content = holder, content
        else:
            self.lost = True

    def _take(self, *, mend: bool) -> bytes:
        content = self._holder.encode()
        while not self._storage.put_if_match(LOCK, content, current=None):
            try:
                found = self._storage.read(LOCK)
            except FileNotFoundError:
                continue
            self._check_free(found, mend=mend)
            if self._storage.put_if_match(LOCK, content, current=found):
                break
        return content

    def _check_free(self, found: bytes, *, mend: bool) -> None:
        """Raise StoreError where a lock file binds somebody, or may."""
        holder = Holder.parse(found)
        if holder is None:
            if _torn(found) or (mend and not self._beats("a process that it does not name", found)):
                return
            raise StoreError(
                f"{self._storage}/{LOCK} is damaged, so it cannot say who writes the store. Make sure nobody does; "
                "`trainhooks verify --repair` then takes the store over after a minute, or delete that file."
            )
        if holder.runs if holder.in_sight else self._beats(str(holder), found):
            unseen = "" if holder.in_sight else f" It cannot be seen from here, but {LOCK} shows that it lives."
            raise StoreError(
                f"{self._storage} is being written by {holder}: one writer a store. Close that run or that "
                f"recorder first, or write to another path.{unseen}"
            )

    def _beats(self, holder: str, content: bytes) -> bool:
        """Whether a holder out of sight is heard of while it is watched."""
        logger.warning(
            "%s was left by %a, which cannot be seen from here: watching for %.0f s whether it lives.",
            f"{self._storage}/{LOCK}",
            holder,
            WATCH_SECONDS,
        )
        until = time.monotonic() + WATCH_SECONDS
        while (rest := until - time.monotonic()) > 0:
            time.sleep(min(rest, _LOOK_SECONDS))
            try:
                if self._storage.read(LOCK) != content:
                    return True
            except FileNotFoundError:  # it has let go
                return False
        return False


def _torn(content: bytes) -> bool:
    """Whether a lock file was cut short, as by a power cut: a living writer's has its name only once it is whole."""
    return not content.rstrip(b"\0").endswith(b"}")


def holder_of(storage: Storage) -> Holder | None:
    """The writer that holds a store, for those who only read it and do not wait; None where there is none.

    One out of sight counts for ten minutes from its last sign of life, so that clocks may differ by as much.
    """
    try:
        holder = Holder.parse(storage.read(LOCK))
    except FileNotFoundError:
        return None
    if holder is None:
        return None
    lives = holder.runs if holder.in_sight else abs(time.time() - holder.beat) < READERS_SECONDS
    return holder if lives else None


def is_garbled(storage: Storage) -> bool:
    """Whether there is a lock file that names nobody."""
    try:
        return Holder.parse(storage.read(LOCK)) is None
    except FileNotFoundError:
        return False


def _release(storage: Storage, token: str, pid: int, stop: Flag) -> None:
    stop.set()
    if os.getpid() != pid:  # a forked child does not hold what its parent holds
        return
    try:
        for _ in range(2):  # a heartbeat that was under way may come between
            content = storage.read(LOCK)
            holder = Holder.parse(content)
            if holder is None or holder.token != token or storage.delete_if_match(LOCK, current=content):
                return
    except OSError:  # gone, or on a medium that went away: a dead process' lock binds nobody
        return


def _keep_alive(lock: weakref.ref[Lock], stop: Flag) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        held = lock()
        if held is None:
            return
        try:
            held.beat()
        except OSError:  # try again at the next beat; the writer's own errors say more
            continue
        finally:
            del held
