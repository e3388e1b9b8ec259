"""Results as plain JSON."""

from __future__ import annotations

import math
from typing import Any


def finite(value: Any) -> Any:
    """The same dictionaries and lists with None for every number that is not finite: JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
