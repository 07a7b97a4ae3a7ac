from __future__ import annotations

import pytest
import torch

import kernels
from kernels import cpu, dispatch


def test_the_reference_can_be_forced() -> None:
    x = torch.randn(2, 4)
    with dispatch.only("reference"):
        assert dispatch.implementation("swiglu", x) is kernels.swiglu_reference
        with dispatch.only(None):
            assert dispatch.has_backend("swiglu", x) == (cpu.native is not None)
        assert not dispatch.has_backend("swiglu", x)
    assert dispatch.has_backend("swiglu", x) == (cpu.native is not None)


def test_the_reference_comes_back_after_an_error() -> None:
    def fail() -> None:
        with dispatch.only("reference"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert dispatch._forced is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_go_to_the_reference(dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, dtype=dtype)
    assert not dispatch.has_backend("swiglu", x)
    assert kernels.swiglu(x).dtype == dtype


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^backend:"), dispatch.only("cuda"):
        pass


def test_every_public_op_has_a_reference() -> None:
    ops = [name for name in kernels.__all__ if f"{name}_reference" in kernels.__all__]
    assert {"linear", "rms_norm", "rope", "swiglu", "store_kv", "paged_attention"} <= set(ops)
    for name in ops:
        assert dispatch.implementation(name, torch.empty(0, device="meta")) is getattr(
            kernels, f"{name}_reference"
        )
