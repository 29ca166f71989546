"""Sizes of published models and of the pocket one, and devices."""

import pytest
import torch

from reelora.components import load_components
from reelora.plan import catalogued, device_facts, sizes_of
from reelora.pocket import MODEL


@pytest.fixture(scope="session")
def pocket():
    return sizes_of(load_components(MODEL, roles=[]))


@pytest.fixture(scope="session")
def published():
    """By hub id."""

    def find(hub_id):
        found = catalogued(hub_id)
        assert found is not None
        return found

    return find


@pytest.fixture(scope="session")
def cpu():
    return device_facts(torch.device("cpu"))
