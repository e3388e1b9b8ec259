"""The parts of a model whose convergence is followed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from trainhooks.model.blocks_and_norm import blocks
from trainhooks.model.candidates import kept
from trainhooks.model.core import NamedTensors, core_model, named_parameters
from trainhooks.model.effective import is_quantized
from trainhooks.model.output_embedding import OutputEmbedding


def parameter_groups(
    model: nn.Module, head: OutputEmbedding, *, patterns: Mapping[str, str | Sequence[str]] | None = None
) -> dict[str, NamedTensors]:
    """The parts of a model whose convergence is followed: name -> its parameters, with clean names.

    `whole`, `embedding`, one for each block (`layers.0` ...), `final_norm`, `output_embedding`, and `other` for
    what belongs to none; groups without parameters are left out. A tied matrix stands in `embedding` and in
    `output_embedding`. `patterns` adds groups by glob on the clean names ({"attention": "*.attention.*"}).

    Raises ValueError where a pattern matches no parameter, or takes the name of a group that is there.
    """
    core = core_model(model)
    named = [(name, parameter) for name, parameter in named_parameters(core) if not is_quantized(parameter)]
    _say_what_is_left_out(named_parameters(core), named)
    of_blocks = dict(blocks(core))
    groups: dict[str, NamedTensors] = {"whole": named, "embedding": []}
    groups |= {block: [] for block in of_blocks.values()}
    groups |= {"final_norm": [], "output_embedding": [], "other": []}
    embeddings = {id(kept(m)) for m in core.modules() if isinstance(m, nn.Embedding)}
    of_head = {id(parameter) for parameter in (head.weight, head.bias) if parameter is not None}
    if head.adapted:
        of_head |= {id(parameter) for parameter in head.module.parameters()}
    for name, parameter in named:
        homes = [block for prefix, block in of_blocks.items() if name.startswith(prefix + ".")]
        if not homes and id(parameter) in embeddings:
            homes.append("embedding")
        if id(parameter) in of_head:
            homes.append("output_embedding")
        elif parameter is head.norm_weight or parameter is head.norm_bias:
            homes.append("final_norm")
        for home in homes or ["other"]:
            groups[home].append((name, parameter))
    groups = {group: members for group, members in groups.items() if members}
    for group, globs in (patterns or {}).items():
        if group in groups:
            raise ValueError(f"the group {group!r} is there already; give the pattern another name.")
        wanted = [globs] if isinstance(globs, str) else list(globs)
        groups[group] = [(name, p) for name, p in named if any(fnmatchcase(name, glob) for glob in wanted)]
        if not groups[group]:
            shown = ", ".join(name for name, _ in named[:8])
            raise ValueError(f"no parameter matches {wanted} of group {group!r}. Names look like: {shown}, ...")
    return groups


def _say_what_is_left_out(every: NamedTensors, kept_ones: NamedTensors) -> None:
    held = {id(parameter) for _, parameter in kept_ones}
    left = [name for name, parameter in every if id(parameter) not in held]
    if left:
        warnings.warn(
            f"{len(left)} quantized parameters ({', '.join(left[:3])}{', ...' if len(left) > 3 else ''}) are in no "
            "group: convergence is that of the others.",
            RuntimeWarning,
            stacklevel=2,
        )
