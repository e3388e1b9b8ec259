"""How much counting costs beside the tokenizer's own `encode_batch` on the same text.

    python benchmarks/count_text.py ../shared/data/english --tokenizer ../shared/data/tokenizers/gpt-neox-20b.json

Both run in turn in one process with the tokenizer's threads; counting reads and decodes the file itself, bare
encoding has its texts in memory.
Prints a Markdown table with the median of the ratios. Some 15 s a megabyte on two cores.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from trainhooks.corpora.base import Settings
from trainhooks.corpora.tables import table_pieces
from trainhooks.corpora.texts import text_pieces


def documents(folder, size):
    """Texts of some 4,000 characters, cut at line ends, until `size` characters are together."""
    found, held = [], ""
    for path in sorted(Path(folder).rglob("*.txt")):
        for line in path.read_text(encoding="utf-8", errors="ignore").splitlines(keepends=True):
            held += line
            if len(held) >= 4000:
                found, held = [*found, held], ""
                if 4000 * len(found) >= size:
                    return found
    return [*found, held]


def sources(folder, texts):
    """The same text in three forms: name and pieces."""
    import pyarrow as pa
    import pyarrow.parquet

    plain, lines, table = folder / "a.txt", folder / "a.jsonl", folder / "a.parquet"
    plain.write_text("".join(texts), encoding="utf-8", newline="")
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    pyarrow.parquet.write_table(pa.table({"text": texts}), table)
    return [("plain text", text_pieces, plain), ("JSON lines", text_pieces, lines), ("Parquet", table_pieces, table)]


def seconds(work):
    """What `work` takes, and gives."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def compared(name, tokenizer, texts, count, rounds):
    """One row of the table: bare encoding and counting in turn."""
    bare, ours, tokens = [], [], 0
    for _ in range(rounds):
        bare.append(seconds(lambda: tokenizer.encode_batch(texts, add_special_tokens=False))[0])
        spent, tallies = seconds(count)
        ours.append(spent)
        tokens = sum(tally.tokens for tally in tallies)
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    speeds = " | ".join(f"{tokens / statistics.median(times):,.0f}" for times in (ours, bare))
    return f"| {name} | {tokens:,} | {speeds} | {ratio:.2f} |"


def counted(pieces, path, settings):
    """What counting the file gives."""
    return [piece.tally(settings) for piece in pieces(path, settings)]


def main():
    """Parses the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="text files are taken from here")
    parser.add_argument("--tokenizer", required=True, help="path of a tokenizer.json")
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    texts = documents(asked.folder, asked.megabytes * 1e6)
    tokenizer = Tokenizer.from_file(asked.tokenizer)
    settings = Settings(vocab_size=tokenizer.get_vocab_size(), tokenizer=asked.tokenizer)
    tokenizer.encode_batch(texts[:50])
    print("| source | tokens | counting, tokens/s | encode_batch, tokens/s | median of time ratios |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, pieces, path in sources(Path(folder), texts):
            print(compared(name, tokenizer, texts, partial(counted, pieces, path, settings), asked.rounds))


if __name__ == "__main__":
    main()
