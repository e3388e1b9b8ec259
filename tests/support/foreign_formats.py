"""Tiny checkpoints of other projects' formats, written by their documented layouts, with one head and one embedding."""

from __future__ import annotations

import argparse
import enum
import json
import math
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

GENERATOR = torch.Generator().manual_seed(0)
HEAD, INPUT = (torch.randn(62, 32, generator=GENERATOR) for _ in range(2))
INNER = torch.randn(5, 7, generator=GENERATOR)  # 35 numbers: no whole runs over two ranks
RANKS = 2


class ZeroStage(enum.IntEnum):
    """As DeepSpeed pickles its stage."""

    three = 3


def save(path: Path, content: object) -> None:
    """`torch.save`, with the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def rows(tensor: torch.Tensor, rank: int) -> torch.Tensor:
    """A rank's share of the rows."""
    return tensor.chunk(RANKS)[rank].clone()


def arguments(*, tied: bool, **more: object) -> argparse.Namespace:
    """What Megatron saves of its command line."""
    return argparse.Namespace(
        untie_embeddings_and_output_weights=not tied,
        padded_vocab_size=62,
        vocab_size=60,
        params_dtype=torch.float32,
        **more,
    )


def megatron_lm(folder: Path, *, tied: bool = False) -> None:
    """Two tensor ranks."""
    for rank in range(RANKS):
        model = {"embedding": {"word_embeddings": {"weight": rows(INPUT, rank)}}}
        model |= {
            "encoder": {"layers.0.mlp.dense_h_to_4h.weight": rows(HEAD, rank), "final_norm.weight": torch.ones(32)}
        }
        model |= {} if tied else {"output_layer.weight": rows(HEAD, rank)}
        told = arguments(tied=tied, tensor_model_parallel_size=RANKS, pipeline_model_parallel_size=1)
        saved = {"args": told, "iteration": 1, "checkpoint_version": 3.0, "model": {"language_model": model}}
        save(folder / f"mp_rank_{rank:02d}" / "model_optim_rng.pt", saved)


def megatron_stages(folder: Path, *, tied: bool = False) -> None:
    """Two pipeline stages of two tensor ranks each."""
    for rank in range(RANKS):
        told = arguments(tied=tied, tensor_model_parallel_size=RANKS, pipeline_model_parallel_size=2)
        first = {
            "embedding.word_embeddings.weight": rows(INPUT, rank),
            "decoder.layers.0.input_layernorm.weight": INNER[0],
        }
        last = {"decoder.layers.0.input_layernorm.weight": INNER[1]}
        last |= {} if tied else {"output_layer.weight": rows(HEAD, rank)}
        for stage, model in enumerate((first, last)):
            save(folder / f"mp_rank_{rank:02d}_{stage:03d}" / "model_optim_rng.pt", {"args": told, "model": model})


def megatron_core(folder: Path, *, tied: bool = False) -> None:
    """`torch_dist`."""
    import torch.distributed.checkpoint as dcp

    tensors = {"embedding.word_embeddings.weight": INPUT, "optimizer.state.exp_avg.output_layer.weight": INPUT}
    tensors |= {} if tied else {"output_layer.weight": HEAD}
    dcp.save(tensors, checkpoint_id=folder, no_dist=True)
    save(folder / "common.pt", {"args": arguments(tied=tied), "iteration": 1})
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')


def neox_layers(folder: Path, *, tied: bool = False) -> None:
    """A file a layer and tensor rank."""
    for rank in range(RANKS):
        layers = {0: {"word_embeddings.weight": rows(INPUT, rank)}, 2: {"attention.dense.weight": INNER}}
        layers |= {
            4: {"norm.weight": torch.ones(32)},
            **({} if tied else {5: {"final_linear.weight": rows(HEAD, rank)}}),
        }
        for layer, tensors in layers.items():
            save(folder / f"layer_{layer:02d}-model_{rank:02d}-model_states.pt", tensors)
    save(folder / "mp_rank_00_model_states.pt", {"module": None, "args": {"padded_vocab_size": 62}})
    text = f'{{\n  "no_weight_tying": {"false" if tied else "true"},\n  "vocab_size": 60,  # ids\n}}\n'
    (folder / "configs").mkdir()
    (folder / "configs" / "run.yml").write_text(text)


def deepspeed(folder: Path, *, tied: bool = False) -> None:
    """Two tensor ranks, without ZeRO 3."""
    for rank in range(RANKS):
        module = {"embed_tokens.weight": rows(INPUT, rank), **({} if tied else {"lm_head.weight": rows(HEAD, rank)})}
        saved = {"module": module, "mp_world_size": RANKS, "args": arguments(tied=tied), "shared_params": {}}
        save(folder / f"mp_rank_{rank:02d}_model_states.pt", saved)
        save(folder / f"zero_pp_rank_0_mp_rank_{rank:02d}_optim_states.pt", {"optimizer_state_dict": {"m": INPUT}})


def zero_3(folder: Path, *, tied: bool = False) -> None:
    """Two data ranks; runs that end in padding."""
    named = OrderedDict({"embed_tokens.weight": INPUT, "mid.weight": INNER, "lm_head.weight": HEAD})
    if tied:
        del named["lm_head.weight"]
    shapes = [OrderedDict((key, tensor.shape) for key, tensor in named.items())]
    for rank in range(RANKS):
        runs = []
        for tensor in named.values():
            length = -(-tensor.numel() // RANKS)
            padded = torch.nn.functional.pad(tensor.flatten(), (0, length * RANKS - tensor.numel()), value=9.0)
            runs.append(padded[rank * length : (rank + 1) * length])
        groups = [torch.cat(runs[:1]), torch.cat(runs[1:])]
        state = {"zero_stage": ZeroStage.three, "partition_count": RANKS, "fp32_flat_groups": groups}
        module = {key: torch.empty(0, dtype=torch.bfloat16) for key in named}
        shared = {"lm_head.weight": "embed_tokens.weight"} if tied else {}
        saved = {"module": module, "param_shapes": shapes, "shared_params": shared, "buffer_names": []}
        save(folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", saved)
        save(folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", {"optimizer_state_dict": state})


def universal(folder: Path, *, tied: bool = False) -> None:
    """A folder a parameter."""
    for key, tensor in {"embed_tokens.weight": INPUT, **({} if tied else {"lm_head.weight": HEAD})}.items():
        save(folder / "zero" / key / "fp32.pt", {"param": tensor, "cat_dim": 0})
        save(folder / "zero" / key / "exp_avg.pt", {"param": tensor * 0, "cat_dim": 0})
    save(folder / "zero" / "optimizer_state.pt", {"param_groups": []})
    save(folder / "mp_rank_00_model_states.pt", {"module": {}, "args": arguments(tied=tied)})


def nanotron(folder: Path, *, tied: bool = False) -> None:
    """Two tensor ranks, each file with the slices it holds."""
    root = folder / "model" / "model"
    heads = {"token_position_embeddings/pp_block/token_embedding": INPUT, "lm_head/pp_block": HEAD}
    for place, tensor in list(heads.items())[: 1 if tied else 2]:
        for rank in range(RANKS):
            (root / place).mkdir(parents=True, exist_ok=True)
            first = rank * 31
            pairs = f"0,31,None|None,None,None#{first},{first + 31},None|None,None,None"
            told = {"version": "1.4", "local_global_slices_pairs": pairs, "unsharded_shape": "(62, 32)"}
            file = root / place / f"model_weight_pp-rank-0-of-1_tp-rank-{rank}-of-2.safetensors"
            save_file({"data": rows(tensor, rank)}, file, metadata=told)
    (root / "final_layer_norm" / "pp_block").mkdir(parents=True)
    save_file({"data": torch.ones(32)}, root / "final_layer_norm" / "pp_block" / "model_weight.safetensors")
    (folder / "checkpoint_metadata.json").write_text('{"version": "1.4", "tp": 2, "dp": 1, "metas": {}}')
    (folder / "model_config.json").write_text(json.dumps({"vocab_size": 60, "tie_word_embeddings": tied}))


def text(value: str) -> bytes:
    """A text as GGUF writes it."""
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_bytes(tensors: dict[str, tuple[tuple[int, ...], int, bytes]], *, settings: int = 2) -> bytes:
    """A GGUF file: name to shape (as torch has it), type and data."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), settings)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama")
    ids = b"".join(text(f"t{number}") for number in range(60))
    head += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 60) + ids
    data = b""
    for name, (shape, kind, held) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", kind, len(data))
        data += held + b"\0" * (-len(held) % 32)
    return head + b"\0" * (-len(head) % 32) + data


def gguf(folder: Path, *, tied: bool = False) -> None:
    """Float32, tied where there is no output.weight."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {"token_embd.weight": INPUT, **({} if tied else {"output.weight": HEAD})}
    plain = {key: (tuple(tensor.shape), 0, tensor.numpy().tobytes()) for key, tensor in named.items()}
    (folder / "model.gguf").write_bytes(gguf_bytes(plain))


def q8_blocks(tensor: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    """Q8_0: blocks of 32 numbers, a float16 scale and 32 int8 each; and what they stand for."""
    blocks = tensor.numpy().reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1) / 127).astype(np.float16)
    codes = np.round(blocks / scales[:, None].astype(np.float32)).clip(-127, 127).astype(np.int8)
    held = b"".join(scale.tobytes() + code.tobytes() for scale, code in zip(scales, codes, strict=True))
    return held, torch.from_numpy(scales[:, None].astype(np.float32) * codes).reshape(tensor.shape)


def meta(folder: Path, *, tied: bool = False) -> None:
    """Two tensor ranks; the embedding by rows, as from the third version on."""
    for rank in range(RANKS):
        tensors = {"tok_embeddings.weight": rows(INPUT, rank), **({} if tied else {"output.weight": rows(HEAD, rank)})}
        save(folder / f"consolidated.{rank:02d}.pth", tensors)
    (folder / "params.json").write_text(json.dumps({"dim": 32, "vocab_size": 62, "tie_word_embeddings": tied}))


def unsharded(folder: Path, *, tied: bool = False) -> None:
    """OLMo's `stepN-unsharded`."""
    tensors = {"transformer.wte.weight": INPUT, **({} if tied else {"transformer.ff_out.weight": HEAD})}
    for name, content in (("model", tensors), ("optim", {"state": {}}), ("train", {"global_step": 1})):
        save(folder / f"{name}.pt", content)


def transformer_lens(folder: Path, *, tied: bool = False) -> None:
    """[dim, vocab]; never tied in a file."""
    del tied
    tensors = {"embed.W_E": INPUT, "unembed.W_U": HEAD.T.clone(), "unembed.b_U": torch.zeros(62)}
    save(folder / "checkpoint.pth", {"state_dict": tensors, "cfg": {"d_vocab": 62}})


def olmo_core(folder: Path, *, tied: bool = False) -> None:
    """A distributed checkpoint two folders down."""
    import torch.distributed.checkpoint as dcp

    tensors = {"model.embeddings.weight": INPUT, **({} if tied else {"model.lm_head.w_out.weight": HEAD})}
    dcp.save(tensors, checkpoint_id=folder / "checkpoint" / "model_and_optim", no_dist=True)
    save(folder / "checkpoint" / "train" / "rank0.pt", {"global_step": 1})


def zarr_array(folder: Path, tensor: torch.Tensor, *, chunk: int = 31) -> None:
    """A Zarr array of format 2, uncompressed, in chunks of rows."""
    folder.mkdir(parents=True)
    said = {"zarr_format": 2, "shape": list(tensor.shape), "chunks": [chunk, tensor.shape[1]], "dtype": "<f4"}
    said |= {"compressor": None, "fill_value": None, "filters": None, "order": "C", "dimension_separator": "."}
    (folder / ".zarray").write_text(json.dumps(said))
    for number in range(math.ceil(tensor.shape[0] / chunk)):
        (folder / f"{number}.0").write_bytes(tensor[number * chunk :][:chunk].contiguous().numpy().tobytes())


def levanter(folder: Path, *, tied: bool = False) -> None:
    """A Zarr array a parameter."""
    zarr_array(folder / "model" / "embeddings" / "token_embeddings" / "weight", INPUT)
    if not tied:
        zarr_array(folder / "model" / "lm_head" / "weight", HEAD)
    zarr_array(folder / "training_state" / "opt_state" / "mu" / "lm_head" / "weight", INPUT)
    (folder / "metadata.json").write_text('{"step": 1}')


def orbax(folder: Path, *, tied: bool = False) -> None:
    """A database of Zarr arrays, kernels [dim, vocab]."""
    import tensorstore

    named = {"params.embed.embedding": INPUT, **({} if tied else {"params.logits_dense.kernel": HEAD.T.contiguous()})}
    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder / 'default'}/"}}
    for key, tensor in named.items():
        told = {"shape": list(tensor.shape), "chunks": list(tensor.shape), "dtype": "<f4"}
        spec = {"driver": "zarr", "kvstore": {**base, "path": f"{key}/"}, "metadata": told, "create": True}
        tensorstore.open(spec).result().write(tensor.numpy()).result()


WRITERS = {
    "Megatron-LM": megatron_lm,
    "Megatron-LM stages": megatron_stages,
    "Megatron-core": megatron_core,
    "GPT-NeoX layers": neox_layers,
    "DeepSpeed": deepspeed,
    "ZeRO 3": zero_3,
    "universal": universal,
    "nanotron": nanotron,
    "GGUF": gguf,
    "Meta": meta,
    "unsharded OLMo": unsharded,
    "TransformerLens": transformer_lens,
    "OLMo-core": olmo_core,
    "Levanter": levanter,
    "Orbax": orbax,
}
NEEDS_TENSORSTORE = ("Levanter", "Orbax")
