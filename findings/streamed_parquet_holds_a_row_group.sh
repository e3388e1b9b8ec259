#!/usr/bin/env bash
# Streaming a Parquet file with `datasets` takes the memory of a whole row group, whatever batch size is asked for.
#
# Guessed: streaming=True with batch_size=64 holds some 64 rows. Seen 2026-11-29, datasets 5.2.0 with pyarrow 26.0.1, Linux: of a file
# of one row group with 300 MB of text (pyarrow writes up to 1,048,576 rows into a group unless told otherwise) the first 10 rows take
# 1,089 MB beyond the libraries, with batch_size=64 as with the default. ParquetFile.iter_batches(batch_size=64) of a file opened with
# pre_buffer=False takes 296 MB.
# What to do: write corpora with small row groups (row_group_size=10_000), or read the file with pyarrow and without its pre-buffer.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1
cd "$folder"
cat > make.py <<'PY'
import random

import pyarrow as pa
import pyarrow.parquet as pq

letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=1_000_000)
long = "".join(letters)
draw = random.Random(1)
rows = [long[at : at + 2_000] for at in (draw.randrange(990_000) for _ in range(150_000))]
pq.write_table(pa.table({"text": rows}), "one.parquet", use_dictionary=False, compression="none")
print("row groups:", pq.ParquetFile("one.parquet").num_row_groups)
PY
cat > read.py <<'PY'
import resource
import sys
from itertools import islice

import datasets
import pyarrow.parquet as pq

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

how, before = sys.argv[1], peak()
if how == "pyarrow":
    with pq.ParquetFile("one.parquet", pre_buffer=False) as file:
        rows = list(islice(file.iter_batches(batch_size=64), 1))
else:
    asked = {} if how == "default" else {"batch_size": int(how)}
    stream = datasets.load_dataset("parquet", data_files="one.parquet", split="train", streaming=True, **asked)
    rows = list(islice(stream, 10))
print(round(peak() - before))
PY
"$folder/venv/bin/python" make.py
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
whole=$("$folder/venv/bin/python" read.py default) asked=$("$folder/venv/bin/python" read.py 64) plain=$("$folder/venv/bin/python" read.py pyarrow)
echo "MB beyond the libraries: default $whole, batch_size=64 $asked, pyarrow without pre-buffer $plain"
test "$whole" -gt 300 && test "$asked" -gt 300 && test "$((plain * 3))" -lt "$asked" || { echo "this has changed"; exit 1; }
