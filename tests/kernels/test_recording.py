"""A replay computes what the recorded calls would compute now; nothing slips past a recording."""

from __future__ import annotations

import threading

import pytest
import torch

from kernels import add_rms_norm, cpu, linear, quantize, rms_norm, swiglu
from kernels.dispatch import only
from kernels.recording import can_record, record

pytestmark = pytest.mark.skipif(cpu.native is None, reason="needs the C++ backend")


def test_a_replay_reads_what_the_inputs_hold_now(dtype: torch.dtype) -> None:
    x, residual = torch.randn(3, 32, dtype=dtype), torch.randn(3, 32, dtype=dtype)
    norm, weight = torch.rand(32, dtype=dtype), torch.randn(64, 32, dtype=dtype)

    def compute() -> tuple[torch.Tensor, torch.Tensor]:
        normed, total = add_rms_norm(x, residual, norm, 1e-5)
        return swiglu(linear(rms_norm(normed, norm, 1e-5), weight)), total

    recording = record(compute, x)
    for _ in range(2):
        x.normal_()
        residual.normal_()
        recording.replay()
        assert all(map(torch.equal, recording.result, compute()))


@pytest.mark.parametrize("inference", [False, True])
def test_what_a_replay_would_leave_out_is_refused(inference: bool) -> None:
    x, weight = torch.randn(3, 32), torch.randn(8, 32)
    turned = x.T.contiguous().T  # the kernel would copy it
    with torch.inference_mode(inference):
        with pytest.raises(RuntimeError, match=r"aten.mul.* cannot be recorded"):
            record(lambda: linear(x, weight) * 2, x)
        with pytest.raises(RuntimeError, match=r"aten.mul_.* cannot be recorded"):
            record(lambda: linear(x, weight).mul_(2), x)
        with pytest.raises(RuntimeError, match="cannot be recorded"):
            record(lambda: linear(turned, weight), x)


def test_other_threads_are_not_recorded() -> None:
    x, y, weight = torch.randn(3, 32), torch.randn(3, 32), torch.randn(8, 32)
    out = torch.zeros(3, 8)

    def compute() -> None:
        other = threading.Thread(target=lambda: out.copy_(linear(y, weight)))
        other.start()
        other.join()
        linear(x, weight)

    assert len(record(compute, x)._calls) == 1
    assert torch.equal(out, linear(y, weight))


def test_nothing_is_recorded_after_the_block() -> None:
    x, weight = torch.randn(3, 32), torch.randn(8, 32)
    recording = record(lambda: linear(x, weight), x)
    linear(x, weight).zero_()
    before = recording.result.clone()
    recording.replay()
    assert torch.equal(recording.result, before)


def test_only_our_own_kernels_record() -> None:
    x = torch.randn(2, 2)
    assert can_record(x, x)
    assert not can_record(x.double(), x.double())
    assert not can_record(x, quantize(x, "int8"))  # computed by torch on the CPU
    with only("reference"):
        assert not can_record(x, x)
