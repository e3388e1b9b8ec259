"""The work of a fold, as others see it: how far it is, what its helpers have taken, and whether it is called off."""

from __future__ import annotations

from dataclasses import dataclass

from trainhooks.store.errors import StoreError


class CalledOffError(StoreError):
    """The fold was called off: its writer leaves the store. The journal has everything."""


@dataclass
class FoldProgress:
    """`threads` compress; `tiles` were begun so far, and `helper_seconds` of CPU were those of other threads than the
    one that folds. One that is `called_off` ends at its next tile."""

    threads: int = 1
    tiles: int = 0
    helper_seconds: float = 0.0
    called_off: bool = False

    def begin_tile(self) -> None:
        """Raises CalledOffError where nobody waits for the fold any more."""
        if self.called_off:
            raise CalledOffError("the writer leaves its store while records are folded; the journal has them.")
        self.tiles += 1

    def add_helper(self, seconds: float) -> None:
        """What another thread has taken, said in the thread that folds."""
        self.helper_seconds += seconds
