"""What goes wrong with a store as it lies on disk."""

from __future__ import annotations


class StoreError(ValueError):
    """The path cannot be used as asked: not a store, another layout, damaged, or not writable.

    Says what was found, what was needed and what to do next. Mistakes in an argument are plain ValueErrors.
    """
