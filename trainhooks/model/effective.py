"""What the module of an output embedding really computes: the matrix behind it, found by asking the module itself.

The module is never called. A still copy of it is: the same parameters, buffers of its own, no hooks, evaluation mode,
so that neither random numbers nor state of the training move.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import MethodType

import torch
from torch import Tensor, nn

from trainhooks.model.distributed import is_sharded
from trainhooks.model.wrappers import unwrapped
from trainhooks.numerics.products import exact_products

TUNERS = {"BaseTunerLayer", "AuxiliaryTrainingWrapper"}  # peft's layers around a matrix
INSIDE = ("base_layer", "original_module", "token_adapter")  # where these have it
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
NUDGE = 0.02
"""Parameters of a test are moved by so much: an adapter that has not begun to train changes nothing."""


def is_tuner(module: nn.Module) -> bool:
    """Whether this is a layer of peft around another module."""
    return any(base.__name__ in TUNERS for base in type(module).__mro__)


def outermost(core: nn.Module, module: nn.Module) -> nn.Module:
    """What stands around `module` and is called in its place: peft's layers, if any."""
    tuners = [found for found in core.modules() if is_tuner(found)]
    while around := [m for m in tuners if any(m._modules.get(name) is module for name in INSIDE)]:
        module = around[0]
    return module


def innermost(module: nn.Module) -> nn.Module:
    """The module that has the matrix, inside peft's layers."""
    while is_tuner(module):
        inside = [inner for name in INSIDE if (inner := module._modules.get(name)) is not None]
        if not inside:
            break
        module = inside[0]
    return module


def is_quantized(tensor: Tensor) -> bool:
    """Whether this holds no numbers that can be read as they are: integers, or a foreign kind that knows a scale."""
    if is_sharded(tensor):
        return False
    foreign = type(tensor).dequantize is not Tensor.dequantize
    return foreign or not tensor.is_floating_point() or tensor.itemsize == 1


def dequantized(tensor: Tensor) -> Tensor:
    """The numbers that a foreign kind of tensor stands for, by its own `dequantize`; detached."""
    with torch.no_grad():
        numbers: Tensor = tensor.detach().dequantize() if type(tensor).dequantize is not Tensor.dequantize else tensor
    return numbers.detach()


def computed_by(module: nn.Module, *, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(matrix [vocab, dim], bias [vocab]) such that `module(x)` is `x @ matrix.T + bias`, detached.

    `like` is a tensor of the dtype and device of what enters. It is true of modules that pass `is_affine`. The module
    is shown the unit vectors without any bias, so that no digit of the matrix is lost.
    """
    with _quietly(like):
        bias = still(module)(like.new_zeros(1, 1, dim))[0, 0]
        bare = still(module)
        for part in bare.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and "bias" in name:
                    part._parameters[name] = nn.Parameter(torch.zeros_like(parameter), requires_grad=False)
        units = torch.eye(dim, dtype=like.dtype, device=like.device)
        rest = bare(like.new_zeros(1, 1, dim))[0]  # of biases under another name
        return (bare(units[None])[0] - rest).T.contiguous(), bias


def adds_bias(module: nn.Module, *, dim: int, like: Tensor) -> bool:
    """Whether `module(0)` may be another than 0."""
    with _quietly(like):
        return bool(_nudged(module, like=like)(like.new_zeros(1, 1, dim)).any())


def is_affine(module: nn.Module, *, dim: int, like: Tensor) -> bool:
    """Whether `module(x)` is one matrix times x, plus a bias, for each position alike, whatever its parameters.

    Raises what the module raises where it cannot be called with x alone.
    """
    return _in_full_precision(_is_affine, module, dim=dim, like=like)


def _is_affine(module: nn.Module, *, dim: int, like: Tensor) -> bool:
    with _quietly(like):
        nudged = _nudged(module, like=like)
        a, b = _probes(dim, like=like)
        zero = torch.zeros_like(a)
        out = nudged(torch.stack([a, b, (a + b) / 2, zero, 2 * a])[None])[0].double()
        turned = nudged(torch.stack([b, a])[None])[0].double()
    fa, fb, middle, at_zero, double = out
    errors = [fa + fb - 2 * middle, double + at_zero - 2 * fa, turned[0] - fb, turned[1] - fa]
    return all(_is_rounding(error, of=out, dtype=like.dtype) for error in errors)


def is_product(module: nn.Module, *, dim: int, like: Tensor) -> bool:
    """Whether `module(x)` is `x @ weight.T (+ bias)` within rounding, whatever these hold; raises as `is_affine`."""
    return _in_full_precision(_is_product, module, dim=dim, like=like)


def _in_full_precision(asked: Callable[..., bool], module: nn.Module, *, dim: int, like: Tensor) -> bool:
    """The answer in float32, where the rounding of two-byte numbers hides no curve; else in what the module takes."""
    if like.itemsize < 4:
        with suppress(Exception):  # foreign code with a dtype of its own
            return asked(module, dim=dim, like=like.float())
    return asked(module, dim=dim, like=like)


def _is_product(module: nn.Module, *, dim: int, like: Tensor) -> bool:
    with _quietly(like):
        nudged = _nudged(module, like=like)
        x = torch.stack(_probes(dim, like=like))
        weight, bias = nudged.weight, getattr(nudged, "bias", None)
        assert isinstance(weight, Tensor)
        out = nudged(x[None])[0]
        wanted = nn.functional.linear(x, weight, bias if isinstance(bias, Tensor) else None)
    fits = out.shape == wanted.shape
    return fits and _is_rounding(out.double() - wanted.double(), of=wanted.double(), dtype=like.dtype)


def still(module: nn.Module) -> nn.Module:
    """A copy that shares parameters and nothing that a pass could change: see above."""
    return _still(module, {})


def _still(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    module = unwrapped(module)  # what a wrapper does beside calling it, such as gathering, is not for a copy
    if id(module) in known:
        return known[id(module)]
    copy: nn.Module = object.__new__(type(module))
    known[id(module)] = copy
    own = dict(module.__dict__)
    own.update({name: type(own[name])() for name in HOOKS if name in own}, training=False)
    own["_parameters"] = dict(module._parameters)
    own["_buffers"] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    own["_modules"] = {n: None if m is None else _still(m, known) for n, m in module._modules.items()}
    replaced = own.pop("forward", None)
    copy.__dict__.update(own)
    if isinstance(replaced, MethodType) and replaced.__self__ is module:
        copy.__dict__["forward"] = MethodType(replaced.__func__, copy)
    return copy


def _nudged(module: nn.Module, *, like: Tensor) -> nn.Module:
    """A still copy with parameters of its own, each a little beside what it is; its two-byte numbers as `like`."""
    copy = still(module)
    for part in copy.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not is_quantized(parameter):
                wave = torch.arange(parameter.numel(), dtype=torch.float32, device=parameter.device).cos_()
                moved = parameter.detach() + NUDGE * wave.view(parameter.shape).to(parameter.dtype)
                part._parameters[name] = nn.Parameter(_widened(moved, like=like), requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else _widened(buffer, like=like)
    return copy


def _widened(tensor: Tensor, *, like: Tensor) -> Tensor:
    return tensor.to(like.dtype) if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _probes(dim: int, *, like: Tensor) -> tuple[Tensor, Tensor]:
    index = torch.arange(dim, dtype=torch.float32, device=like.device)
    return index.cos().to(like.dtype), (1.7 * index + 1).cos().to(like.dtype)


def _is_rounding(error: Tensor, *, of: Tensor, dtype: torch.dtype) -> bool:
    size = of.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    return bool(error.abs().amax() <= 32 * torch.finfo(dtype).eps * size)


@contextmanager
def _quietly(like: Tensor) -> Iterator[None]:
    """No gradients, no autocast, no shortened products, and the random numbers as they were."""
    devices = [like.device] if like.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.no_grad(),
        exact_products(like.device.type),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the module says them in its own passes
        yield
