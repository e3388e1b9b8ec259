"""Errors that more than one layer raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SettingsError(ValueError):
    """A metric's settings do not fit the model: an error of the call, raised at the first record, never a NaN."""


@contextmanager
def of_settings() -> Iterator[None]:
    """Inside, a ValueError is one of settings."""
    try:
        yield
    except ValueError as error:
        raise SettingsError(str(error)) from error
