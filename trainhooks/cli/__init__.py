"""The command line: `trainhooks ...`. Thin: each command parses, calls the library, prints."""

from trainhooks.cli import analyze as analyze
from trainhooks.cli import audit as audit
from trainhooks.cli import compact as compact
from trainhooks.cli import count as count
from trainhooks.cli import demo as demo
from trainhooks.cli import export as export
from trainhooks.cli import figures as figures
from trainhooks.cli import inspect as inspect
from trainhooks.cli import known_suites as known_suites
from trainhooks.cli import plan as plan
from trainhooks.cli import probe as probe
from trainhooks.cli import prune as prune
from trainhooks.cli import report as report
from trainhooks.cli import snapshot as snapshot
from trainhooks.cli import steer as steer
from trainhooks.cli import tensorboard as tensorboard
from trainhooks.cli import verdict as verdict
from trainhooks.cli import verify as verify
from trainhooks.cli import watch as watch
from trainhooks.cli.base import app as app
