"""What a host's own loggers are sent of a record: under one prefix, and without the host's own curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from trainhooks.sinks.base import Record

Drawn = TypeVar("Drawn")

PREFIX = "trainhooks/"
HOSTS_OWN = frozenset({"loss", "learning_rate"})
"""The loop gave them: its loggers have them already, at the loop's own moments."""


def prefixed(tagged: Mapping[str, Drawn]) -> dict[str, Drawn]:
    """The same under `trainhooks/family/quantity`, whoever draws them."""
    return {PREFIX + tag: drawn for tag, drawn in tagged.items()}


def host_scalars(record: Record) -> dict[str, float]:
    """The record's scalars for a logger that belongs to a host, under the same tags in every host.

    Vectors without labels are not among them: hosts' loggers take numbers alone.
    """
    return prefixed({tag: number for tag, number in record.scalars.items() if tag not in HOSTS_OWN})
