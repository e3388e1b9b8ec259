"""The command line: `trainhooks ...`. Thin: each command parses, calls the library, prints."""

from trainhooks.cli import analyze as analyze
from trainhooks.cli import compact as compact
from trainhooks.cli import count as count
from trainhooks.cli import probe as probe
from trainhooks.cli import prune as prune
from trainhooks.cli import runs as runs
from trainhooks.cli import steer as steer
from trainhooks.cli import store as store
from trainhooks.cli import suites as suites
from trainhooks.cli.base import app as app
