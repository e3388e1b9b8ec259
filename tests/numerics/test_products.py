import pytest
import torch

from trainhooks.numerics.products import exact_products


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_settings_come_back(precision):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with exact_products("cpu"):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == precision
        expected = "ieee" if precision == "highest" else "tf32"
        assert torch.backends.cuda.matmul.fp32_precision == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_autocast_does_not_reach_inside():
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with exact_products("cpu"):
            assert (a @ a).dtype == torch.float32


def test_settings_come_back_after_an_error():
    before = torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(RuntimeError, match="inside"), exact_products("cpu"):
        raise RuntimeError("inside")
    assert torch.backends.cuda.matmul.fp32_precision == before
