import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import rankdata, t

from trainhooks.lead.claims import stdtrit
from trainhooks.lead.ranks import mean_ranks


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [1.0, 1.0, 0.0, 1.0], [5], [0.1, np.nan], list(range(50)) * 2])
def test_ranks_and_quantiles_are_those_of_scipys_statistics(values):
    np.testing.assert_array_equal(mean_ranks(np.array(values)), rankdata(values))
    assert stdtrit(len(values), 0.975) == t.ppf(0.975, len(values))


def test_a_report_takes_no_time_to_import_what_draws_and_what_tests():
    """matplotlib's figures and scipy's statistics take most of a second of a report that takes few."""
    code = (
        "import sys, trainhooks.html_report\n"
        "print([name for name in ('scipy.stats', 'matplotlib.figure', 'lightning', 'xarray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
