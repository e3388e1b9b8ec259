"""What a root and a manifest may declare: nothing but what the layout implies, and no name that is not the format's.

A checksum says that a file is as it was written, not who wrote it. So every name, shape and codec is compared with what
the format has for such a layout before a file is looked for or a number is allocated by it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainhooks.store.format.layout import TOKEN_COUNT, TOKEN_TEXT, Layout
from trainhooks.store.format.schema import ArraySpec, array_specs, token_specs

# what goes wrong where JSON has another shape than it should
MALFORMED = (AttributeError, KeyError, TypeError, ValueError, IndexError, ArithmeticError, RecursionError)
_CHUNK = re.compile(r"c((?:/(?:0|[1-9][0-9]{0,17}))+)")
_MOST = 1 << 53  # entries along a dimension


def array_problems(
    layout: Layout, arrays: Mapping[str, Mapping[str, Any]], *, records: int, snapshots: int
) -> list[str]:
    """What the declared metadata of the arrays have that this layout's arrays do not; empty where they fit.

    Raises one of `MALFORMED` where they are no metadata at all.
    """
    if not (0 <= records < _MOST and 0 <= snapshots < _MOST):
        return [f"it declares {records} records and {snapshots} snapshots"]
    specs = {spec.name: spec for spec in [*array_specs(layout), *token_specs(layout)]}
    problems = [f"array {name} is none of this layout" for name in arrays if name not in specs]
    for name, spec in specs.items():
        if name in arrays:
            problems += _problems(spec, arrays[name], shape=spec.shape(records=records, snapshots=snapshots))
        elif name not in (TOKEN_COUNT, TOKEN_TEXT):
            problems.append(f"array {name} is missing from the root's consolidated metadata")
    return problems


def _problems(spec: ArraySpec, metadata: Mapping[str, Any], *, shape: tuple[int, ...]) -> Iterator[str]:
    grid = {"name": "regular", "configuration": {"chunk_shape": list(spec.shards or spec.chunks)}}
    keys = {"name": "default", "configuration": {"separator": "/"}}
    wanted = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": spec.dtype,
        "dimension_names": list(spec.dims),
        "chunk_grid": grid,
        "chunk_key_encoding": keys,
        "fill_value": "NaN" if isinstance(spec.fill_value, float) and math.isnan(spec.fill_value) else spec.fill_value,
    }
    for key, value in wanted.items():
        found = metadata.get(key)
        if found != value or type(found) is not type(value):
            yield f"array {spec.name}: {key} is {_short(found)}, needed {value}"
    if not isinstance(metadata.get("attributes", {}), dict) or metadata.get("storage_transformers"):
        yield f"array {spec.name}: attributes or storage_transformers are not the format's"
    outline = _outline(metadata["codecs"])
    if outline != _codecs(spec):
        yield f"array {spec.name}: codecs are {_short(outline)}, needed {_codecs(spec)}"


def _codecs(spec: ArraySpec) -> list[object]:
    if spec.dtype == "string":
        return ["vlen-utf8", "blosc", "crc32c"]
    inner: list[object] = ["bytes little", "blosc", "crc32c"]
    if spec.transpose is not None:
        inner.insert(0, f"transpose {list(spec.transpose)}")
    if spec.shards is None:
        return inner
    return [[f"sharding_indexed {list(spec.chunks)} end", inner, ["bytes little", "crc32c"]]]


def _outline(codecs: Any) -> list[object]:
    """The codecs that metadata name, with what of their configuration says how bytes lie; nested as they are."""
    outline: list[object] = []
    for codec in codecs:
        name, about = codec["name"], codec.get("configuration") or {}
        if name == "sharding_indexed":
            title = f"{name} {about['chunk_shape']} {about.get('index_location', 'end')}"
            outline.append([title, _outline(about["codecs"]), _outline(about["index_codecs"])])
        elif name == "transpose":
            outline.append(f"{name} {about['order']}")
        elif name == "bytes":
            outline.append(f"{name} {about.get('endian', 'little')}")
        else:
            outline.append(name)
    return outline


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def bad_key(key: object, arrays: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a manifest's key is no file of one of these arrays: its metadata, or a chunk of its dimensions."""
    if not isinstance(key, str):
        return True
    name, _, rest = key.partition("/")
    if name not in arrays:
        return True
    if rest == "zarr.json":
        return False
    found = _CHUNK.fullmatch(rest)
    return found is None or found[1].count("/") != len(arrays[name]["shape"])
