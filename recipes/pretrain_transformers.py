"""The HF Trainer with a callback that records every update; the scalars go where it reports to as well.

    python recipes/pretrain_transformers.py --steps 100 --out store/runs/transformers
    tensorboard --logdir store/runs/transformers

Some ten seconds of one CPU core. Needs `pip install 'trainhooks[transformers,tensorboard]'`.
"""

import os
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import trainhooks as th
from trainhooks.integrations.transformers import TrainHooks


def read_words(vocab_size: int) -> tuple[Tensor, list[str]]:
    """Source text of Python's own library as ids of words, and the text of each id; 0 stands for rare words."""
    files = sorted(Path(os.__file__).parent.glob("[a-c]*.py"))
    words = re.findall(r"\w+|\s+|[^\w\s]", "".join(file.read_text(encoding="utf-8") for file in files))
    texts = ["<rare>", *sorted(word for word, _ in Counter(words).most_common(vocab_size - 1))]
    ids = {word: number for number, word in enumerate(texts)}
    return torch.tensor([ids.get(word, 0) for word in words]), texts


def train(args: Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    ids, texts = read_words(args.vocab)
    starts = torch.randint(len(ids) - args.context, (args.steps * args.accumulate * args.batch, 1))
    data = [{"input_ids": window, "labels": window} for window in ids[starts + torch.arange(args.context)]]
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=args.vocab, max_position_embeddings=args.context, **sizes))
    counts = th.TokenCounts.count(ids.numpy(), vocab_size=args.vocab)
    arguments = TrainingArguments(
        output_dir=str(args.out),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=args.accumulate,  # a record an update, not a batch
        learning_rate=2e-3,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="tensorboard",
        logging_steps=10,
        save_strategy="no",
        seed=args.seed,
    )
    # `with`: should training fail, what was recorded is closed at once
    with TrainHooks(store=args.out / "run.zarr", counts=counts, token_texts=texts, mode="overwrite") as hooks:
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[hooks]).train()
    return model


def main(argv: list[str] | None = None) -> nn.Module:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, value in {"steps": 100, "batch": 8, "accumulate": 2, "context": 64, "vocab": 2048, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path("store/runs/transformers"))
    args = parser.parse_args(argv)
    model = train(args)
    metrics = th.open_store(args.out / "run.zarr").metrics()
    for name in ("loss", "probe.heldout_spearman"):
        values = metrics[name].dropna("step").values
        print(f"{name}: {values[0]:.2f} -> {values[-1]:.2f}")
    return model


if __name__ == "__main__":
    main()
