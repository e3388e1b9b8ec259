"""What stands under each figure: what is drawn, its null or baseline, and what it does not show."""

DYNAMICS = (
    "Above: rank correlation (Spearman, held out in five folds by token id mod 5) between -log corpus frequency and "
    "its prediction by the log-linear probe of the output embedding, beside the row norm alone (baseline) and the "
    "same probe of permuted targets (null); where the store holds no live probe, fitted at the stored matrices. "
    "Below: distance of the parameters to their final state, relative to its norm, beside a random walk between the "
    "same ends (null). The distance depends on the run's length, and correlation saturates where distance does not: "
    "that one rises before the other falls is no evidence that frequency came first (see the figure of the lead). "
    "Steps are on {scale} axis."
)
LAYERS = (
    "Below: distance of each parameter group to its final state, relative to that state's norm, from the input "
    "embedding (dark) to the output embedding (light), beside a random walk with the whole model's distances at both "
    "ends (null). Above: the frequency probe of the output embedding with its null and baseline, on the same axis."
)
BINS = (
    "Tokens in bins by corpus count, rare (dark) to frequent (light). Above: root mean square error of the held-out "
    "prediction of -log frequency in nats, beside the standard deviation of all targets, which is what no information"
    " at all reaches over all bins (null): without any, bins near the mean lie below it and the ends above. Below: "
    "distance of a bin's rows of the output embedding to their final state, relative "
    "to its norm, beside a random walk with the distances of all rows at both ends (null)."
)
SPECTRUM = (
    "Above: singular values of the centred output embedding by rank, first (dark) to last (light), beside the largest"
    " and the smallest of a Gaussian matrix of independent elements with the same shape and norm (null: sd times "
    "sqrt(rows) +- sqrt(dim)). Below: effective ranks, exp of the entropy of the squared (energy) and of the plain "
    "(amplitude) singular values' shares, and the stable rank, beside the dimension, which is the most there is."
)
SCATTER = (
    "The log-linear probe at one step: held-out prediction of each token's -log corpus frequency against its true "
    "value, in nats, each token predicted by the fold that was fitted without it; up to 1,500 tokens evenly over the "
    "ranks of frequency. Dashed: a perfect prediction; dotted: no information. The rank correlations are of all "
    "tokens: of the probe, of the row norm alone (baseline), of permuted targets (null)."
)
SALIENCY = (
    "Above: saliency |A_i| sd(E_i) of the probe's slope in nats, falling, at the last step, beside that in random "
    "(Haar) rotations of the axes: median and central 95%. Below: its concentration over time, Gini and participation"
    " ratio / dim, beside the same of the rotations (bands: their range). Any slope looks sparse to some degree; the "
    "axes are privileged only where it lies outside the rotations."
)
COMPONENTS = (
    "Rows of the centred output embedding on their first two principal components, one point a token, coloured by "
    "log10 corpus frequency (signs chosen so that frequency rises along both). R^2 is that of log frequency on the "
    "two components, in-sample, over all tokens; in brackets what a target without meaning reaches on average, 2/(n -"
    " 1) (null)."
)
OVERVIEW = (
    "Is frequency there yet, and has the rest converged? Held-out correlation of the frequency probe beside the row "
    "norm alone and permuted targets; distance of parameter groups to their final state beside a random walk; "
    "singular values of the output embedding; predicted against true -log frequency at the last step; rows in two "
    "dimensions, coloured by frequency; the training loss."
)
LEAD = (
    "Above: how much of its final change the part of the output embedding along log frequency has made, and the rest "
    "(0 at the first record, 1 at the last), beside a straight line between the two states, whose parts move together"
    " (null). Below: the lead, onset of the rest over onset of frequency, with its 95% interval over bootstrap "
    "samples of tokens (one run), beside labellings without meaning that load on the change as frequency does: median"
    " and 5-95% of the draws of each null. Frequency came first only where its lead lies above those; permutations "
    "are shown, not counted."
)
DELETION = (
    "Deletion of output-embedding dimensions ({variant}): how far the output moves (Jensen-Shannon divergence), and "
    "what the loss changes by, as ever more dimensions go, in the orders given, on text that chose none of them; "
    "random orders are the null (mean and range)."
)
STEERING = (
    "Steering of token frequency: achieved against requested ratio of a token's mean probability, median and quartiles"
    " over tokens, on text that did not choose the edit; directions side by side at each ratio. Dashed: as asked; "
    "dotted: no effect; grey marks, where given: random directions (null)."
)
LOSS = (
    "Training loss as the loop gave it, in nats a token, beside a uniform guess over the rows of the output embedding "
    "(null)."
)
