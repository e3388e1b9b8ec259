"""Where records go."""

from trainhooks.sinks.base import Record, Sink
from trainhooks.sinks.json_lines import JsonLinesSink
from trainhooks.sinks.logger import LoggerSink
from trainhooks.sinks.memory import MemorySink
from trainhooks.sinks.rank_rows import RankRowsSink
from trainhooks.sinks.store import StoreSink
from trainhooks.sinks.tensorboard import TensorBoardSink

__all__ = [
    "JsonLinesSink",
    "LoggerSink",
    "MemorySink",
    "RankRowsSink",
    "Record",
    "Sink",
    "StoreSink",
    "TensorBoardSink",
]
