"""Requests to an object store, tried again: by the kind of answer, not by the kind of request.

obstore tries again what is idempotent by HTTP's own rules, and not a batch delete (a POST) nor a 400 RequestTimeout,
which S3 answers where a body stood still. All that a store asks for may be asked twice, so all of it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_STATUS = re.compile(r"status code: (\d{3})[^:\n]*:? ?(.*?)(?:\n\nDebug source|\Z)", re.DOTALL)
_PASSING = ("408", "429")  # of the 4xx, those that another try may mend
_TIMEOUT_CODE = "RequestTimeout<"
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 2.0


def may_pass(error: Exception) -> bool:
    """Whether another try may succeed: a broken connection, a timeout, 408, 429, 5xx, a 400 RequestTimeout.

    `error` is one that obstore gives no kind of its own (what is missing, forbidden or refused has one); the status
    is in its text alone. A HEAD's 400 has no body to say which it is.
    """
    text = str(error)
    status = _STATUS.search(text)
    if status is None or not status[1].startswith("4"):
        return True
    return status[1] in _PASSING or (status[1] == "400" and (not status[2] or _TIMEOUT_CODE in status[2]))


def tried_again(request: Callable[[], Result], *, failures: tuple[type[Exception], ...], seconds: float) -> Result:
    """What `request` gives, made again after 0.1, 0.2, ... 2 s while it raises one of `failures` that may pass.

    No try begins later than `seconds` after the first failure, less what the failed try itself took (it may have been
    stuck all along); one more is always made. Raises the last failure.
    """
    began, wait = time.monotonic(), _FIRST_WAIT
    deadline: float | None = None
    while True:
        try:
            return request()
        except failures as error:
            now = time.monotonic()
            if not may_pass(error) or (deadline is not None and now + wait > deadline):
                raise
            deadline = deadline or max(began, now - seconds) + seconds
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)
