"""Errors that more than one layer raises."""

from __future__ import annotations


class SettingsError(ValueError):
    """A metric's settings do not fit the model: an error of the call, raised at the first record, never a NaN."""
