"""Fixtures and settings of all tests."""

from __future__ import annotations

import os

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'  # read when Triton is first imported
DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
