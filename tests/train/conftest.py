"""A tiny transformer with branches on it, and a cache to train on."""

import pytest
from small_run import CONFIG, make_diffusion, make_transformer, write_cache

from reelora.adapters import LoraSpec
from reelora.data import CachedClips
from reelora.lora import attach
from reelora.train import Lesson, read_metrics, train


@pytest.fixture
def branched():
    """A new transformer with the same branches each time it is called."""

    def make(**changes):
        transformer = make_transformer(**changes)
        attach(transformer, LoraSpec(rank=4, alpha=4), seed=3)
        return transformer

    return make


@pytest.fixture
def diffusion():
    return make_diffusion()


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> CachedClips:
    """Five films of nine frames of 32x32."""
    return write_cache(tmp_path_factory.mktemp("films"))


@pytest.fixture
def clips(cache):
    return cache.split(1, seed=0)[0]


@pytest.fixture
def held_out(cache):
    return cache.split(1, seed=0)[1]


@pytest.fixture
def config():
    return CONFIG


@pytest.fixture
def run(branched, clips, held_out, diffusion, config, tmp_path):
    """One start of a run in ``folder``; gives its result, its model and the losses of its steps."""

    def start(folder="run", settings=config, model=None, identity=None, held_out=held_out, **options):
        model = model or branched()
        lesson = Lesson(model=model, clips=clips, held_out=held_out, diffusion=diffusion, identity=identity or {"base": "tiny"})
        result = train(lesson, settings, tmp_path / folder, **options)
        rows = read_metrics(tmp_path / folder / "metrics.jsonl")
        return result, model, [row["loss"] for row in rows if "loss" in row]

    return start
