"""A hub's JSON answers: bounded in bytes, pages and seconds, whatever it sends.

huggingface_hub's own calls read an answer whole, follow pages without end and raise what its parser raises; they are
not asked here. Its session, headers and authorization are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.sources.byte_source import load_json
from trainhooks.checkpoints.sources.deadline import OverdueError, within

# of one answer: 50,000 files with their hashes. It and what is made of it take less than 200 MB
MOST_BYTES = 16 << 20
MOST_CONTAINERS, MOST_VALUES = 200_000, 500_000
MOST_PAGES = 1_000
TOTAL_SECONDS = 180.0  # of one listing, its waits and pages together
ANSWER_SECONDS = 60.0  # of one answer, however little it sends at a time
TIMEOUT_SECONDS = 20.0  # without a byte
RETRIES = 4
RETRY_STATUS = (408, 429, 500, 502, 503, 504)


def hub_pages(url: str, *, shorter: str | None = None) -> Iterator[Any]:
    """The JSON of an address and of the pages that follow it; of `shorter` where the address' answer is not read.

    Raises CheckpointError for any answer but 200, what is no JSON, more than 16 MiB, 200,000 arrays and objects or
    500,000 values in one, 1,000 pages, a minute for one answer or three for all, and for a next page at another host.
    """
    deadline = time.monotonic() + TOTAL_SECONDS
    following = url
    for _ in range(MOST_PAGES):
        try:
            value, after = _tried(following, deadline)
        except UnreadAnswerError:
            if shorter is None:
                raise
            value, after = _tried(shorter, deadline)
        yield value
        if after is None:
            return
        following = after
        if urlsplit(following)[:2] != urlsplit(url)[:2]:
            raise CheckpointError(f"the hub's next page lies at another host, {following[:200]!r}; it is not asked.")
    raise CheckpointError(f"the hub's listing has more than {MOST_PAGES} pages.")


def _tried(url: str, deadline: float) -> tuple[Any, str | None]:
    wait = 0.5
    for attempt in range(RETRIES + 1):
        try:
            return _asked(url, deadline)
        except _PassingError as error:
            left = deadline - time.monotonic()
            pause = max(wait, error.wait)
            if attempt == RETRIES or pause > left:
                raise CheckpointError(f"the hub does not answer: {error}.") from error
            time.sleep(pause)
            wait *= 2
    raise AssertionError("unreachable")


class UnreadAnswerError(CheckpointError):
    """An answer that came and is not read: it is too long, or no JSON."""


class _PassingError(Exception):
    """An answer that another try may mend, and the seconds that the server asks to be left alone."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


def _asked(url: str, deadline: float) -> tuple[Any, str | None]:
    seconds = min(ANSWER_SECONDS, deadline - time.monotonic())
    try:
        text, following = within(seconds, lambda: _fetched(url))
    except OverdueError:
        raise CheckpointError(f"the hub's answer takes more than {max(0.0, seconds):.0f} s.") from None
    try:
        return load_json(text, most=(MOST_CONTAINERS, MOST_VALUES)), following
    except ValueError as error:
        raise UnreadAnswerError(f"the hub's answer is no JSON that is read: {str(error)[:200]}.") from error


def _fetched(url: str) -> tuple[bytearray, str | None]:
    """An answer's body, and the address of the page after it."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import build_hf_headers, get_session

    headers = build_hf_headers(library_name="trainhooks")
    try:
        with get_session().stream(
            "GET", url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True
        ) as response:
            _check(response)
            following = response.links.get("next", {}).get("url")
            return _body(response), following if isinstance(following, str) else None
    except (CheckpointError, _PassingError):
        raise
    except OfflineModeIsEnabled as error:
        raise CheckpointError("offline mode is on: unset HF_HUB_OFFLINE.") from error
    except Exception as error:  # which ones depends on the HTTP library that the client brings
        told = f"{type(error).__name__}: {str(error).strip()[:200]}"
        if isinstance(error, transport_errors()):
            raise _PassingError(told) from error
        raise CheckpointError(f"the hub's answer cannot be read: {told}") from error


def _check(response: Any) -> None:
    status = response.status_code
    if status in RETRY_STATUS:
        told = response.headers.get("Retry-After", "")
        raise _PassingError(f"it answers {status}", float(told) if told.isdecimal() else 0.0)
    if status != 200:
        code = response.headers.get("X-Error-Code", "")[:80]
        raise CheckpointError(
            f"the hub answers {status}{f' ({code})' if code else ''}: no such repository or revision, or no access "
            "with this token."
        )


def _body(response: Any) -> bytearray:
    held = bytearray()
    for block in response.iter_bytes(1 << 16):
        held += block
        if len(held) > MOST_BYTES:
            raise UnreadAnswerError(f"the hub's answer has more than {MOST_BYTES >> 20} MiB.")
    return held  # a copy would be as much again


def transport_errors() -> tuple[type[Exception], ...]:
    """Timeouts and broken connections of the HTTP client that this huggingface_hub uses (httpx2 from 2.x on)."""
    clients = [name for name in ("httpx2", "httpx") if importlib.util.find_spec(name)]
    return tuple(importlib.import_module(name).TransportError for name in clients)
