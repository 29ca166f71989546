"""What tests of recipes share."""

import gc
import weakref
from importlib import import_module

import pytest
from torch import nn

from reelora import components


@pytest.fixture
def alive(monkeypatch):
    """The roles of which some tensor is in memory, of all that were loaded."""
    seen: list[tuple[str, weakref.ref]] = []
    load = components.load_components

    def noting(path, **options):
        parts = load(path, **options)
        for role in parts.roles:
            part = getattr(parts, role)
            if isinstance(part, nn.Module):
                seen.extend((role, weakref.ref(tensor)) for tensor in (*part.parameters(), *part.buffers()))
        return parts

    for name in ("recipes.precompute", "recipes.trained", "recipes.conditions", "generate.session"):
        monkeypatch.setattr(import_module(f"reelora.{name}"), "load_components", noting)

    def roles():
        gc.collect()
        return {role for role, tensor in seen if tensor() is not None}

    return roles
