"""Draw the picture at the top of the README from a real run: `trainhooks demo`, then this.

trainhooks demo
python benchmarks/readme_picture.py store/runs/demo/run.zarr docs/images/overview.png
"""

from __future__ import annotations

import sys

from trainhooks.plots import draw
from trainhooks.run_figures.overview import overview_drawing
from trainhooks.run_figures.run_numbers import read_run

DPI = 160


def main(store: str, out: str) -> None:
    """Six panels of one run, one page wide."""
    figure = draw(overview_drawing(read_run(store, lead=False)))
    figure.savefig(out, dpi=DPI, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main(*sys.argv[1:])
