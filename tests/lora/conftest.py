"""Tiny real models, and inputs for them."""

import pytest
from tiny import run, tiny_transformer, tiny_unet


@pytest.fixture
def transformer():
    return tiny_transformer()


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.fixture(params=[tiny_transformer, tiny_unet], ids=["transformer", "unet"])
def model(request):
    return request.param()


@pytest.fixture
def forward():
    return run
