"""What a host's own loggers are sent of a record: under one prefix, and without the host's own curves."""

from __future__ import annotations

from collections.abc import Mapping

from trainhooks.sinks.base import Record

PREFIX = "trainhooks/"
HOSTS_OWN = frozenset({"loss", "learning_rate"})
"""The loop gave them: its loggers have them already, at the loop's own moments."""


def prefixed(scalars: Mapping[str, float]) -> dict[str, float]:
    """The same numbers under `trainhooks/family/quantity`, whoever draws them."""
    return {PREFIX + tag: number for tag, number in scalars.items()}


def host_scalars(record: Record) -> dict[str, float]:
    """The record's scalars for a logger that belongs to a host, under the same tags in every host."""
    return prefixed({tag: number for tag, number in record.scalars.items() if tag not in HOSTS_OWN})
