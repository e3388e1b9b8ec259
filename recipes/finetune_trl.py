"""TRL's SFT, recorded at every update: prompts are masked, so the labels of the answers alone count.

    python recipes/finetune_trl.py --steps 50 --out store/runs/trl

Some twenty seconds of one CPU core; it begins from random weights, so that nothing is downloaded. Needs
`pip install 'trainhooks[transformers]' trl`.
"""

import ast
import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import trainhooks as th
from trainhooks.integrations.transformers import TrainHooks


def read_pairs() -> list[dict[str, str]]:
    """Functions of Python's own library: the head of one is the prompt, its body the answer."""
    pairs = []
    for file in sorted(Path(os.__file__).parent.glob("[a-c]*.py")):
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.body[0].lineno > node.lineno:
                start, below, end = node.lineno - 1, node.body[0].lineno - 1, node.end_lineno
                whole, prompt = "\n".join(lines[start:end]), "\n".join(lines[start:below]).rstrip()
                pairs.append({"prompt": prompt, "completion": whole[len(prompt) :]})  # no token spans the two
    return pairs


def train_tokenizer(pairs: list[dict[str, str]], vocab_size: int) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    texts = [pair["prompt"] + pair["completion"] for pair in pairs]
    bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=["<pad>", "<eos>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, pad_token="<pad>", eos_token="<eos>")


def train(args: Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    pairs = read_pairs()
    tokenizer = train_tokenizer(pairs, args.vocab)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=args.context, **sizes))
    answers = tokenizer([pair["completion"] for pair in pairs])["input_ids"]  # what the loss sees, so what is counted
    counts = th.TokenCounts.count(answers, vocab_size=len(tokenizer))
    texts = [tokenizer.decode([number]) for number in range(len(tokenizer))]
    arguments = SFTConfig(
        output_dir=str(args.out),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=args.accumulate,  # a record an update, not a batch
        learning_rate=2e-3,
        max_length=args.context,
        dataloader_pin_memory=torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
    )
    with TrainHooks(store=args.out / "run.zarr", counts=counts, token_texts=texts, mode="overwrite") as hooks:
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
            callbacks=[hooks],
        )
        trainer.train()
    return model


def main(argv: list[str] | None = None) -> nn.Module:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, value in {"steps": 50, "batch": 8, "accumulate": 1, "context": 128, "vocab": 2048, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path("store/runs/trl"))
    args = parser.parse_args(argv)
    model = train(args)
    store = th.open_store(args.out / "run.zarr")
    spearman = store.metrics()["probe.heldout_spearman"].dropna("step").values
    print(f"probe.heldout_spearman: {spearman[0]:.2f} -> {spearman[-1]:.2f}")
    print(f"labels: {store.label_counts(int(store.steps[-1])).sum()} tokens of answers")
    return model


if __name__ == "__main__":
    main()
