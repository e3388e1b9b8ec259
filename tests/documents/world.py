"""A folder in which everything that the docs' commands name is there, and a hub that stands for the real one."""

import struct
from pathlib import Path

import numpy as np
import torch
from bpe import byte_level
from hub_server import Hub
from safetensors.torch import save

import trainhooks as th

PYTHIA_IDS, PYTHIA_ROWS = 50277, 50304
HUB_STEPS = (0, 1, 2, 8, 64, 512, 1000)
WORDS = [f"{a}{b}" for a in ("the", "of", "and", "to", "in", "it") for b in ("", "s", "ly", "ing", "er", "ness")]


def write_texts(folder: Path, *, documents: int = 24, words: int = 500) -> None:
    """Documents of words whose frequencies fall as Zipf says."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, len(WORDS) + 1)
    folder.mkdir()
    for number in range(documents):
        drawn = rng.choice(WORDS, size=words, p=shares / shares.sum())
        (folder / f"{number:02d}.txt").write_text(" ".join(drawn))


def write_model(folder: Path, tokenizer: Path, *, vocab_size: int, seed: int = 0) -> None:
    """A small Llama with the tokenizer beside it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **sizes, initializer_range=0.3)).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())


def write_run(
    path: Path, counts: th.TokenCounts, texts: list[str], *, seed: int = 0, steps: int = 40, every: int = 1
) -> None:
    """A short run on ids drawn by their counts."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = torch.nn.Sequential()
    model.add_module("embed", torch.nn.Embedding(counts.vocab_size, 16))
    model.add_module("lm_head", torch.nn.Linear(16, counts.vocab_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    shares = torch.from_numpy(counts.counts / counts.n_tokens)
    with th.Recorder(model, store=path, counts=counts, token_texts=texts, schedule=th.Every(every)) as recorder:
        for _ in range(steps):
            ids = torch.multinomial(shares, 8 * 17, replacement=True, generator=generator).reshape(8, 17)
            recorder.begin_step(labels=ids[:, 1:])
            loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            recorder.after_update(loss=loss)


def write_megatron(folder: Path) -> None:
    """A pair in which every Pythia id stands at least once."""

    rng = np.random.default_rng(0)
    stream = np.concatenate([np.arange(PYTHIA_IDS), rng.zipf(1.3, size=40 * 2049) % PYTHIA_IDS]).astype("<u2")
    stream = stream[: len(stream) // 2049 * 2049]
    stream.tofile(folder / "pile_text_document.bin")
    sizes, pointers = np.array([len(stream)], "<i4"), np.array([0], "<i8")
    head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 1, 2)
    tables = sizes.tobytes() + pointers.tobytes() + np.array([0, 1], "<i8").tobytes()
    (folder / "pile_text_document.idx").write_bytes(head + tables)


def pythia_hub() -> Hub:
    """Some of pythia-160m's steps: a narrow head of the right height; step1 repeats step0, as it does there."""
    hub, generator = Hub(), torch.Generator().manual_seed(0)
    start, end = (torch.randn(PYTHIA_ROWS, 4, generator=generator) for _ in range(2))
    for step in HUB_STEPS:
        way = 0.0 if step <= 1 else float(np.log1p(step) / np.log1p(HUB_STEPS[-1]))
        head = (start + way * end).to(torch.float16)
        files = {"model.safetensors": save({"embed_out.weight": head}), "config.json": b'{"model_type": "gpt_neox"}'}
        hub.add("EleutherAI/pythia-160m", f"step{step}", files)
    return hub


def write_staged(folder: Path, *, vocab: int = 40) -> None:
    """Two stages, the second of which counts anew; at step 10 nothing has moved yet."""
    generator = torch.Generator().manual_seed(0)
    start, drift = torch.randn(2, vocab, 8, generator=generator)
    names = [f"stage1-step{step}-tokens{step // 10}B" for step in (0, 10, 20, 30, 40)]
    names += [f"stage2-step{step}-tokens{step // 5}B" for step in (5, 10)]
    for way, name in zip((0, 0, 1, 2, 3, 4, 5), names, strict=True):
        (folder / "STAGED" / name).mkdir(parents=True)
        head = start + 0.1 * way * drift
        (folder / "STAGED" / name / "model.safetensors").write_bytes(save({"lm_head.weight": head}))
        (folder / "STAGED" / name / "config.json").write_text('{"tie_word_embeddings": false}')
    (folder / "OTHER").symlink_to(folder / "STAGED")
    th.TokenCounts(np.arange(vocab, 0, -1) ** 2).save(folder / "staged.npz")


def build(folder: Path) -> None:
    """Everything the commands take for granted; what a command makes itself is not made here."""
    write_texts(folder / "texts")
    for name in ("english", "xarray"):
        (folder / name).symlink_to(folder / "texts")
    (folder / "TEXT").symlink_to(folder / "texts")
    vocab_size = byte_level(folder / "tokenizer.json").get_vocab_size()
    write_model(folder / "MODEL", folder / "tokenizer.json", vocab_size=vocab_size)
    (folder / "stories260K").symlink_to(folder / "MODEL")
    for step in (0, 1, 2):
        write_model(folder / "SUITE" / f"step{step}", folder / "tokenizer.json", vocab_size=vocab_size, seed=step)
    counts = th.TokenCounts(np.arange(vocab_size, 0, -1) ** 2)
    texts = [f"t{i}" for i in range(vocab_size)]
    write_run(folder / "RUN.zarr", counts, texts, steps=300, every=10)
    for seed in (1, 2):
        write_run(folder / f"SEED{seed}.zarr", counts, texts, seed=seed)
    write_megatron(folder)
    write_staged(folder)
