"""Commands on token counts: count a corpus, describe counts, check published ones."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from trainhooks.cli.base import Flag, Positive, Several, command
from trainhooks.core.printable import say, shown

if TYPE_CHECKING:
    from trainhooks.core.token_counts import TokenCounts
    from trainhooks.corpora.base import Settings
    from trainhooks.corpora.counting import Report

_NEEDS_SOURCES = "nothing to do: name the files or folders to count and --out COUNTS.npz, or use --describe COUNTS."


@command
def count(
    *source: str,
    out: Path | None = None,
    tokenizer: Path | None = None,
    vocab_size: Annotated[int | None, Positive] = None,
    workers: Annotated[int | None, Positive] = None,
    scheduler: str | None = None,
    window: int | None = None,
    skip_first: Flag = False,
    leave_out: Annotated[tuple[int, ...], Several] = (),
    text_field: str = "text",
    dtype: str = "uint16",
    skip_bad: Flag = False,
    overwrite: Flag = False,
    preset: Literal["pythia"] | None = None,
    describe: Path | None = None,
    against: Path | None = None,
    json: Flag = False,
) -> None:
    """Count the tokens of a corpus, of any size; or describe counts that are there.

    Counting that was interrupted goes on where it was when the same command is given again.

    Parameters
    ----------
    source
        Files and folders: text (.txt, .jsonl, .gz, .zst), .parquet, .arrow, Megatron .bin/.idx, .bin, .npy.
    out
        Where the counts go: .npz keeps everything, .npy and .csv the counts alone.
    tokenizer
        A tokenizer.json, needed for text; its ids bound the vocabulary.
    vocab_size
        Number of ids; by default the tokenizer's, added tokens included.
    workers
        Processes on this machine; by default what the size asks for.
    scheduler
        Address of a Dask scheduler whose workers count instead; they need to see the same files.
    window
        Leave out the first of every so many tokens, which is never a label (Pythia: 2049).
    skip_first
        Leave out the first token of each document or row.
    leave_out
        Ids that do not count: separators, an ignore index.
    text_field
        The JSON field or table column that holds the text.
    dtype
        Of the ids in a .bin without .idx.
    skip_bad
        Leave out what cannot be read, and say how much that was, instead of stopping.
    overwrite
        Replace counts that are already at --out.
    preset
        pythia: the source is a published array of a whole Pythia run's counts; check it instead of counting.
    describe
        Counts to describe: zeros, Zipf exponent, coverage, entropy; with --tokenizer, whether they belong to it.
    against
        With --describe: other counts, for the Kullback-Leibler divergence both ways.
    json
        Print JSON instead of text.

    Examples
    --------
    trainhooks count texts/ --tokenizer tokenizer.json --out counts.npz
    trainhooks count pile_text_document.idx --vocab-size 50277 --window 2049 --out pile.npz
    trainhooks count --describe counts.npz --tokenizer tokenizer.json --json
    """
    if describe is not None:
        if source or out or preset:
            raise ValueError("--describe reads counts and takes no sources, --out or --preset: give it alone.")
        return _describe(describe, against=against, tokenizer=tokenizer, json=json)
    if against is not None:
        raise ValueError("--against needs --describe COUNTS, the counts to compare with.")
    if not source or out is None:
        raise ValueError(_NEEDS_SOURCES)
    _check_out(out, overwrite=overwrite)
    if preset is not None:
        return _take_preset(source, out, json=json)
    from trainhooks.corpora.base import LabelRule, Settings

    settings = Settings(
        vocab_size=_vocab_size(tokenizer, vocab_size),
        rule=LabelRule(window=window, skip_first=skip_first, leave_out=leave_out),
        tokenizer=None if tokenizer is None else str(tokenizer),
        text_field=text_field,
        skip_bad=skip_bad,
    )
    counts, report = _count(
        source, settings, out=out, dtype=dtype, workers=workers, scheduler=scheduler, progress=not json
    )
    _print_counted(counts, report, out, json=json)


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Everything that can be wrong with the target is said before hours of counting."""
    if out.suffix.lower() not in (".npz", ".npy", ".csv"):
        raise ValueError(f"--out is {out}; needed a name that ends in .npz (everything), .npy or .csv (counts alone).")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} is already there: pass --overwrite to replace it, or choose another name.")
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} for --out is not there: make it first.")


def _check_apart(out: Path, sources: tuple[str, ...]) -> None:
    """Counts that lie among the sources would be counted next time, or replace a source."""
    target = out.resolve()
    for source in sources:
        place = Path(source).resolve()
        if target == place or (out.suffix.lower() == ".npy" and place in target.parents):
            raise ValueError(f"--out {out} lies in the source {source}: it would be taken for ids; put it elsewhere.")


def _say_splits(sources: tuple[str, ...]) -> None:
    """Say of sources that hold several splits, as `DatasetDict.save_to_disk` writes them, that all are counted."""
    for source in sources:
        splits = sorted(path.parent.name for path in Path(source).glob("*/dataset_info.json"))
        if len(splits) > 1 and (Path(source) / "dataset_dict.json").is_file():
            told = f"{source} is a DatasetDict: its splits {', '.join(splits)} are added up; name one to count it alone"
            say(shown(told), error=True)


def _vocab_size(tokenizer: Path | None, given: int | None) -> int:
    if tokenizer is None:
        if given is None:
            raise ValueError("how many ids there are is not known: pass --tokenizer tokenizer.json, or --vocab-size V.")
        return given
    from trainhooks.corpora.tokenizer_match import load_tokenizer, tokenizer_vocab_size

    own = tokenizer_vocab_size(load_tokenizer(tokenizer))
    if given is not None and given < own:
        raise ValueError(
            f"--vocab-size is {given}, but {tokenizer} has {own} ids: leave it out, or pass {own} or more."
        )
    return given or own


def _count(
    sources: tuple[str, ...],
    settings: Settings,
    *,
    out: Path,
    dtype: str,
    workers: int | None,
    scheduler: str | None,
    progress: bool,
) -> tuple[TokenCounts, Report]:
    """Counts, saves, and only then forgets what resumption needs."""
    from dataclasses import replace

    from trainhooks.corpora.counting import count_corpus
    from trainhooks.corpora.sources import open_sources

    shown = progress and sys.stderr.isatty()
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists():
        say(f"going on from {partial}; delete it to start again", error=True)
    _check_apart(out, sources)
    _say_splits(sources)
    pieces = open_sources(sources, settings, bin_dtype=dtype)
    try:
        with _executor(scheduler) as executor:
            counts, report = count_corpus(
                pieces, settings=settings, workers=workers, resume=partial, progress=shown, executor=executor
            )
    except KeyboardInterrupt:
        say(f"interrupted; give the same command again to go on from {partial}", error=True)
        sys.exit(130)
    counts = replace(counts, tokens_read=report.tokens)
    counts.save(out)
    partial.unlink(missing_ok=True)
    return counts, report


@contextmanager
def _executor(scheduler: str | None) -> Iterator[Any]:
    """The workers of a Dask scheduler, None where no address is given."""
    if scheduler is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("--scheduler needs dask and distributed: pip install 'trainhooks[cluster]'") from error
    with Client(scheduler) as client:
        yield client


def _print_counted(counts: TokenCounts, report: Report, out: Path, *, json: bool) -> None:
    from trainhooks.corpora.describe import describe_counts

    rate = report.tokens / report.seconds if report.seconds > 0 else 0.0
    run = {
        "out": str(out),
        "skipped": report.skipped,
        "problems": list(report.problems),
        "pieces": report.pieces,
        "pieces_resumed": report.resumed,
        "seconds": report.seconds,
        "tokens_per_second": None if report.resumed else rate,
    }
    found = describe_counts(counts).to_dict()
    if json:
        say(json_format.dumps(found | run, indent=2))
        return
    documents = "unknown" if counts.documents is None else f"{counts.documents:,}"
    speed = (
        f"{report.resumed} of {report.pieces} pieces were done before" if report.resumed else f"{rate:,.0f} a second"
    )
    say(f"tokens     {counts.n_tokens:,} counted of {report.tokens:,} read in {report.seconds:.1f} s ({speed})")
    say(f"documents  {documents}")
    say(f"ids        {counts.vocab_size:,}, {found['zero_counts']:,} of them with a count of zero")
    say(shown(f"rule       {counts.rule}"))
    say(f"skipped    {report.skipped:,}")
    for problem in report.problems:
        say(shown(f"           {problem}"))
    say(f"written to {out}")


def _take_preset(sources: tuple[str, ...], out: Path, *, json: bool) -> None:
    from trainhooks.corpora.presets import pythia_counts

    if len(sources) != 1:
        raise ValueError(f"--preset pythia checks one file; got {len(sources)}.")
    counts = pythia_counts(sources[0])
    counts.save(out)
    if json:
        say(json_format.dumps({"out": str(out), "tokens": counts.n_tokens, "rule": counts.rule}, indent=2))
        return
    say(f"tokens     {counts.n_tokens:,} = 143000 x 1024 x 2049, as it should be")
    say("note       the first token of each window is counted, though it is never a label")
    say(f"written to {out}")


def _describe(path: Path, *, against: Path | None, tokenizer: Path | None, json: bool) -> None:
    from trainhooks.core.token_counts import TokenCounts
    from trainhooks.corpora.describe import SMOOTHING, describe_counts, kl_divergence
    from trainhooks.corpora.tokenizer_match import belonging_warnings

    counts = TokenCounts.load(path)
    found = describe_counts(counts).to_dict()
    warnings = [] if tokenizer is None else belonging_warnings(counts, tokenizer=tokenizer)
    if against is not None:
        other = TokenCounts.load(against)
        found["kl"] = {
            "to_other": kl_divergence(counts, other=other),
            "from_other": kl_divergence(other, other=counts),
            "smoothing": SMOOTHING,
        }
        if counts.rule != other.rule:
            warnings.append(f"the two were counted by different rules ({counts.rule!r}; {other.rule!r}).")
    if json:
        say(json_format.dumps(found | {"warnings": warnings}, indent=2))
        return
    _print_description(found)
    for warning in warnings:
        say(shown(f"warning: {warning}"))


def _print_description(found: dict[str, Any]) -> None:
    for name in ("vocab_size", "tokens", "tokens_read", "documents", "zero_counts"):
        value = found[name]
        say(f"{name.replace('_', ' '):<14}{'unknown' if value is None else f'{value:,}'}")
    say(shown(f"{'rule':<14}{found['rule'] or 'unknown'}"))
    say(f"{'entropy':<14}{found['entropy']:.4f} nats")
    if (zipf := found["zipf"]) is None:
        say(f"{'Zipf exponent':<14}none: too few ids occur")
    else:
        say(
            f"{'Zipf exponent':<14}{zipf['least_squares']:.3f} by least squares (R2 {zipf['r_squared']:.3f}), "
            f"{zipf['likelihood']:.3f} by likelihood, ranks {zipf['first']} to {zipf['last']}"
        )
    for size, share in found["top_share"].items():
        say(f"{'coverage':<14}{share:.1%} of the tokens by the {size:,} most frequent ids")
    for share, ids in found["ids_for_share"].items():
        say(f"{'coverage':<14}{ids:,} ids have {share:.0%} of the tokens")
    if "kl" in found:
        kl = found["kl"]
        say(f"{'KL':<14}{kl['to_other']:.6g} nats to the other, {kl['from_other']:.6g} back")
        say(f"{'':<14}with {kl['smoothing']} added to each count")
