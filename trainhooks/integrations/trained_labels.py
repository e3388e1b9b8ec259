"""Which ids of a batch the loss sees: told by the model that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

LabelFunction = Callable[[Any], Tensor | None]

# models of `transformers` whose loss takes `labels` as they are: encoders, and older ones that do not shift
UNSHIFTED_ENDINGS = ("ForMaskedLM", "WithLMHeadModel", "ForPreTraining")
UNSHIFTED_CLASSES = frozenset(
    [
        "BartForCausalLM",
        "BigBirdPegasusForCausalLM",
        "BlenderbotForCausalLM",
        "BlenderbotSmallForCausalLM",
        "CpmAntForCausalLM",
        "MBartForCausalLM",
        "MarianForCausalLM",
        "MvpForCausalLM",
        "PLBartForCausalLM",
        "PegasusForCausalLM",
        "ProphetNetForCausalLM",
        "TrOCRForCausalLM",
        "WhisperForCausalLM",
        "XLNetLMHeadModel",
    ]
)


def causal_labels(batch: Any) -> Tensor | None:
    """The ids that a causal language model of `transformers` is trained on, given its batch.

    `shift_labels` as they are, else `labels` without position 0, which the model's own shift drops. Negative ids
    (-100) stay in and count as no label. None where the batch is no mapping or holds neither.
    """
    if not isinstance(batch, Mapping):
        return None
    shifted: Tensor | None = batch.get("shift_labels")
    if shifted is not None:
        return shifted
    labels = batch.get("labels")
    return None if labels is None else labels[..., 1:]


def whole_labels(batch: Any) -> Tensor | None:
    """The ids that an encoder-decoder or a masked language model is trained on: `labels` as they are."""
    return batch.get("labels") if isinstance(batch, Mapping) else None


def no_labels(batch: Any) -> None:
    """None: of the loss nothing is known."""


def labels_of(model: nn.Module) -> LabelFunction:
    """The function for the batches of this model: `whole_labels` where its loss does not shift, else `causal_labels`.

    Told by the class and the configuration of the outermost module that has a configuration of `transformers`.
    """
    for module in model.modules():
        pairs = getattr(getattr(module, "config", None), "is_encoder_decoder", None)
        if pairs is not None:
            name = _class_name(module)
            unshifted = pairs or name.endswith(UNSHIFTED_ENDINGS) or name in UNSHIFTED_CLASSES
            return whole_labels if unshifted else causal_labels
    return causal_labels


def _class_name(module: nn.Module) -> str:
    """The name of the model's class, that of the model itself where an adapter is around it."""
    base = getattr(module, "get_base_model", None)
    return type(module if base is None else base()).__name__
