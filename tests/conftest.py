"""What all tests share. Its presence also puts this folder on the import path (``reference``)."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other
DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
