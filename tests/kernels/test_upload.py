"""Arrays arrive as they were sent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.upload import pack, unpack, upload

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def arrays() -> list[np.ndarray]:
    table = np.arange(60, dtype=np.int32).reshape(6, 10)
    return [
        np.array([3, -1, 2**40]),
        np.empty(0, np.float32),
        table[::2, 1:4],
        np.array([0.5], np.float32),
        np.array([[True], [False]]),
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_arrays_arrive_whole(device: str) -> None:
    sent = arrays()
    arrived = upload(sent, torch.device(device))
    for array, tensor in zip(sent, arrived, strict=True):
        assert tensor.device.type == device
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 16 == 0
        assert torch.equal(tensor.cpu(), torch.from_numpy(array.copy()))
    sent[0][:] = 0
    assert arrived[0].tolist() == [3, -1, 2**40]


@pytest.mark.parametrize("device", DEVICES)
def test_a_buffer_takes_later_arrays_of_the_same_shapes(device: str) -> None:
    place = torch.device(device)
    buffer = pack(arrays(), place).to(place)
    views = unpack(buffer, arrays())
    buffer.copy_(pack([x + x for x in arrays()], place), non_blocking=True)
    for array, view in zip(arrays(), views, strict=True):
        assert torch.equal(view.cpu(), torch.from_numpy(array + array))


def test_nothing_to_send() -> None:
    assert upload([], torch.device("cpu")) == []
