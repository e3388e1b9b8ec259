"""The log-linear probe of an output embedding: targets, sums that add, fits, baselines, sparsity and drift."""

from trainhooks.numerics.hashing import permutation, splitmix64
from trainhooks.numerics.rank_correlation import average_ranks, pearson, spearman
from trainhooks.probe.baselines import (
    CovariateGain,
    NeverLabels,
    covariate_gain,
    never_label_control,
    norm_folded,
    row_norm_probe,
    row_norms,
    token_covariates,
)
from trainhooks.probe.ceiling import noise_ceiling, small_share
from trainhooks.probe.channels import Channels, channels
from trainhooks.probe.drift import slope_cosine, transfer_r2
from trainhooks.probe.fit import fit_probe, probe_sums
from trainhooks.probe.row_selection import RowSelection
from trainhooks.probe.scored import ProbeFit
from trainhooks.probe.solve import Coefficients, solve_sums
from trainhooks.probe.sparsity import (
    LEAST_ROTATIONS,
    Concentration,
    Sparsity,
    dimensions_needed,
    gini,
    hoyer,
    participation_ratio,
    probe_sparsity,
    refit_curve,
    saliency,
    unique_saliency,
)
from trainhooks.probe.sums import Moments, ProbeSums
from trainhooks.probe.target import (
    counts_for_rows,
    effective_rows,
    frequency_target,
    shrunk_weights,
    smoothed_frequency_target,
    sqrt_weights,
    token_mask,
)

__all__ = [
    "LEAST_ROTATIONS",
    "Channels",
    "Coefficients",
    "Concentration",
    "CovariateGain",
    "Moments",
    "NeverLabels",
    "ProbeFit",
    "ProbeSums",
    "RowSelection",
    "Sparsity",
    "average_ranks",
    "channels",
    "counts_for_rows",
    "covariate_gain",
    "dimensions_needed",
    "effective_rows",
    "fit_probe",
    "frequency_target",
    "gini",
    "hoyer",
    "never_label_control",
    "noise_ceiling",
    "norm_folded",
    "participation_ratio",
    "pearson",
    "permutation",
    "probe_sparsity",
    "probe_sums",
    "refit_curve",
    "row_norm_probe",
    "row_norms",
    "saliency",
    "shrunk_weights",
    "slope_cosine",
    "small_share",
    "smoothed_frequency_target",
    "solve_sums",
    "spearman",
    "splitmix64",
    "sqrt_weights",
    "token_covariates",
    "token_mask",
    "transfer_r2",
    "unique_saliency",
]
