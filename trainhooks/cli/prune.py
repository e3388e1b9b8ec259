"""The command that deletes dimensions."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from trainhooks.cli.base import Flag, Positive, Several, command, refuse_beside_over
from trainhooks.core.printable import say


@command
def prune(
    model: str,
    *,
    text: Annotated[tuple[Path, ...], Several],
    order: Annotated[tuple[str, ...], Several] = (),
    variant: Annotated[tuple[str, ...], Several] = (),
    random: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 10,
    js_bound: float = 0.02,
    loss_bound: float = 0.05,
    store: Path | None = None,
    step: int | None = None,
    tokenizer: Path | None = None,
    context_length: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 128,
    positions: Annotated[int, Positive] = 4096,
    seed: int = 0,
    over: str | None = None,
    fraction: float = 0.3,
    code: str = "zero/ascending",
    generate: Annotated[int | None, Parameter(validator=validators.Number(gte=20))] = None,
    untie: Flag = False,
    save: Path | None = None,
    json: Flag = False,
) -> None:
    """Delete dimensions of the output embedding in every order, and say how many can go and what saliency gains.

    Documents are split in two halves: one gives orders and what stands in, the other every figure printed.

    Parameters
    ----------
    model
        A folder or a hub id of a causal language model.
    text
        Text files, .jsonl files or folders of them; fewer than 8 plain files are cut into documents at blank lines.
    order
        Some of ascending, descending, unique, norm, logit_variance; by default all.
    variant
        Some of zero, context_mean, compensated; by default all.
    random
        Random orders beside them.
    js_bound
        Jensen-Shannon divergence that is allowed, nats.
    loss_bound
        Change of loss that is allowed, nats.
    store
        A Zarr store whose output embedding replaces the model's head.
    step
        Which of the store's matrices; by default the last.
    tokenizer
        A tokenizer.json where the model has none.
    context_length
        Tokens a window.
    positions
        Positions in each half.
    seed
        Of the split, the windows, the random orders and the intervals.
    over
        Steps to go along, all or as in 0,1,2,4 or 0:300:50: MODEL is a folder of whole models step{N}, or with
        --store the body that each of the store's output embeddings is put in. Prints the largest fraction of every
        order against the step; each step costs a whole run, so take --variant zero and fewer positions.
    fraction
        Of the dimensions to delete in the model that is saved or generates.
    code
        Which deletion is saved or generates: variant/order, as the table names them.
    generate
        Let the model as it would be saved, and the unmodified one, write this many texts (3 seeds each) after
        beginnings of the test documents, to the context's length: MAUVE, distinct-2 and repetition. Refused where
        unmodified against unmodified text has a MAUVE below 0.9. Needs the extra generation. Costs 6 x this many x
        context_length tokens of the model (300 texts of 128 tokens: 30 seconds of one core with 260K parameters).
    untie
        Save with an input embedding of its own where it is the same matrix; otherwise it loses the same dimensions.
    save
        Write the pruned model there.
    json
        Print JSON instead of text; a figure that is not defined is null.
    """
    from trainhooks.core.formatting import finite
    from trainhooks.intervene.contexts import collect_contexts, read_documents, split_documents
    from trainhooks.intervene.deletion.orders import ORDERS
    from trainhooks.intervene.deletion.prune import check_savable, code_labels, pruned_target, token_mask_of
    from trainhooks.intervene.deletion.prune import prune as run_prune
    from trainhooks.intervene.deletion.variants import VARIANTS
    from trainhooks.intervene.generation import draw_prompts, score_generation, unmodified_text
    from trainhooks.intervene.target import load_target

    options: dict[str, Any] = {
        "orders": order or ORDERS,
        "variants": variant or VARIANTS,
        "random": random,
        "js_bound": js_bound,
        "loss_bound": loss_bound,
        "seed": seed,
    }
    if over is not None:
        from trainhooks.intervene.along_training import moments, prune_along

        refuse_beside_over({"--save": save, "--step": step, "--generate": generate})
        series = moments(
            model,
            text=text,
            over=over,
            store=store,
            tokenizer=tokenizer,
            context_length=context_length,
            max_positions=positions,
            seed=seed,
        )
        along = prune_along(series, **options)
        say(json_format.dumps(along.to_dict(), indent=2) if json else along.render(), end="\n" if json else "")
        return
    target = load_target(model, store=store, step=step, tokenizer=tokenizer)
    if save is not None or generate is not None:
        known = code_labels(options["orders"], options["variants"], random=random, seed=seed)
        check_savable(target, code=code, fraction=fraction, known=known)
    parts = split_documents(read_documents(text), seed=seed)
    reference = None
    if generate is not None:  # before the long part: it may be refused
        prompts = draw_prompts(target, parts[1], samples=generate, context_length=context_length, seed=seed)
        reference = unmodified_text(target.model, prompts, length=context_length - prompts.shape[1])
    halves = [
        collect_contexts(target, part, context_length=context_length, max_positions=positions, seed=seed)
        for part in parts
    ]
    found = run_prune(
        target.weight,
        calibration=halves[0],
        test=halves[1],
        bias=target.bias,
        mask=token_mask_of(target),
        **options,
    )
    edited = None
    if save is not None or reference is not None:
        edited = pruned_target(target, found, code=code, fraction=fraction, untie=untie)
    score = None
    if edited is not None and reference is not None:
        score = score_generation(target.model, edited.model, reference=reference)
    if json:
        generation = {} if score is None else {"generation": {"code": code, "fraction": fraction} | asdict(score)}
        say(json_format.dumps(finite(found.to_dict() | generation), indent=2, allow_nan=False))
    else:
        say(found.render())
        if target.tied:
            say("The input embedding is the same matrix; the figures above are for the output side alone.")
        if score is not None:
            say(f"{code} at {fraction:g}, the model as saved, generates {score.render()}")
    if edited is not None and save is not None:
        edited.save(save)
