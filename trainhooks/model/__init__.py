"""What is followed of a model: its output embedding, the last norm, its parameter groups; parameters by clean names."""

from trainhooks.model.core import (
    NamedTensors,
    check_model,
    core_model,
    module_at,
    module_path,
    named_parameters,
    parameter_at,
)
from trainhooks.model.effective import is_quantized
from trainhooks.model.groups import parameter_groups
from trainhooks.model.output_embedding import OutputEmbedding, find_output_embedding
from trainhooks.model.wrappers import WRAPPER_ATTRIBUTES, clean_name

__all__ = [
    "WRAPPER_ATTRIBUTES",
    "NamedTensors",
    "OutputEmbedding",
    "check_model",
    "clean_name",
    "core_model",
    "find_output_embedding",
    "is_quantized",
    "module_at",
    "module_path",
    "named_parameters",
    "parameter_at",
    "parameter_groups",
]
