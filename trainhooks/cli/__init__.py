"""The command line: `trainhooks ...`. Thin: each command parses, calls the library, prints."""

from trainhooks.cli import runs as runs
from trainhooks.cli.base import app as app
