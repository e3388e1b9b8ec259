"""Train a grid of small models and measure the paper's five claims on each, cell by cell; run again, it goes on.

    python recipes/reproduce --english texts/ --out store/runs/reproduce

`texts/` is a folder of English text (the page says which was used); without it the grid is of Python's standard
library alone. The full grid takes some hours on two cores, `--quick` minutes. `--pythia pythia-14m --tokenizer
tokenizer.json` trains Pythia's shapes with Pythia's vocabulary instead; the larger ones are for a GPU, which is taken
where there is one. What is kept of each cell is a small JSON file; the page and its pictures are made from these alone:

    python recipes/reproduce --page docs/evidence

Needs `trainhooks[transformers,corpora]`, and matplotlib for the page.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # as a folder that python runs, it is a folder of scripts

import torch
from commands import trainhooks
from grid import CODE, MAIN, PYTHIA, Cell, full, pythia, quick
from measure import MAX_RECORDS, measure, rounded
from models import real_models
from train import train

import trainhooks as th


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    args = parse(argv)
    if args.page is None:
        run(args)
    if args.page is not None or args.results is not None:
        from page import write_page

        results = args.page or args.results
        print(f"page: {write_page(results, results.parent / f'{results.name}.md')}")


def run(args: Namespace) -> None:
    """Train and measure what is missing."""
    torch.set_num_threads(args.threads)
    cells = quick(english=bool(args.english)) if args.quick else pythia(args.pythia) or full()
    if not args.english:
        cells = [cell for cell in cells if cell.text == "code" or args.quick]
    results = args.results or args.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        train_cell(cell, args)
    for cell in cells:  # after all: a cell's control is another seed
        measure_cell(cell, args, results)
    for family in dict.fromkeys(cell.family for cell in cells):
        judge(family, args.out, results)
    if args.models and args.english:
        write(results / "models.json", real_models(args.models, args.english, args.out))


def parse(argv: Sequence[str] | None) -> Namespace:
    """The settings."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("store/runs/reproduce"), help="where the runs go")
    parser.add_argument("--results", type=Path, help="where the kept figures go (None: OUT/results, and no page)")
    parser.add_argument("--english", type=Path, nargs="+", help="English text files or folders")
    parser.add_argument("--pythia", nargs="+", default=[], choices=sorted(PYTHIA), help="instead: shapes of Pythia")
    parser.add_argument("--tokenizer", type=Path, help="the tokenizer.json of Pythia, which --pythia needs")
    parser.add_argument("--models", type=Path, help="a folder of models that were trained elsewhere")
    parser.add_argument("--quick", action="store_true", help="three tiny cells, in minutes")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--page", type=Path, help="only write the page from these kept figures")
    args = parser.parse_args(argv)
    if args.pythia and not (args.english and args.tokenizer):
        parser.error("--pythia trains on English with Pythia's own vocabulary: give --english and --tokenizer too")
    return args


def texts_of(cell: Cell, args: Namespace) -> list[Path]:
    """What is read for steering, deletion and the model's own output: a shuffled cell reads the text itself."""
    if args.english and cell.text != "code":
        return list(args.english)
    return [Path(os.__file__).parent / name for name in ("asyncio", "email", "json", "unittest")]


def train_cell(cell: Cell, args: Namespace) -> None:
    """Train a cell that is not there yet."""
    folder = args.out / cell.name
    if (folder / "trained.json").is_file():
        return
    began, cpu = time.monotonic(), time.process_time()
    train(cell, folder, english=args.english, tokenizer=args.tokenizer)
    spent = {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    write(folder / "trained.json", spent | {"finished": time.strftime("%Y-%m-%d")})
    print(f"{cell.name}: trained in {spent['seconds']} s", flush=True)


def measure_cell(cell: Cell, args: Namespace, results: Path) -> None:
    """Measure a cell that has no kept figures yet."""
    kept = results / f"{cell.name}.json"
    if kept.is_file():
        return
    folder, began, cpu = args.out / cell.name, time.monotonic(), time.process_time()
    along = args.quick or cell.family in (MAIN.family, CODE.family)
    found = measure(cell, folder, text=texts_of(cell, args), along=along)
    spent = {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    trained = json.loads((folder / "trained.json").read_text(encoding="utf-8"))
    write(kept, found | {"trained": trained, "measured": spent | {"date": time.strftime("%Y-%m-%d")} | machine()})
    print(f"{cell.name}: measured in {spent['seconds']} s", flush=True)


def judge(family: str, out: Path, results: Path) -> None:
    """`trainhooks verdict` on all seeds of a family."""
    stores = [path.parent / "run.zarr" for path in sorted(out.glob(f"{family}-*/trained.json"))]
    found = trainhooks("verdict", *stores, "--max-records", MAX_RECORDS)
    share = found["shares"][0]
    seeds = share["over_seeds"]
    kept: dict[str, Any] = {name: found[name] for name in ("level", "sentence", "notes", "seeds", "outcome")}
    kept["lead"], kept["p"] = rounded(share["lead"]["mean"]), rounded(share["p"])
    kept["over_seeds"] = seeds and {key: rounded(value) for key, value in flat(seeds).items()}
    write(results / f"verdict-{family}.json", kept)


def flat(found: dict[str, Any], before: str = "") -> dict[str, float]:
    """The numbers of nested tables, under joined names."""
    kept: dict[str, float] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            kept |= flat(value, f"{before}{name}.")
        elif isinstance(value, (int, float)):
            kept[f"{before}{name}"] = float(value)
    return kept


def machine() -> dict[str, str]:
    """What it ran on, in words that name nobody's machine."""
    return {
        "machine": f"{os.cpu_count()} shared cores, {platform.machine()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, trainhooks {th.__version__}",
    }


def write(path: Path, found: object) -> None:
    """JSON on one line."""
    path.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
