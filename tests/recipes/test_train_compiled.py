"""A run with compiled blocks, from its settings on."""

import pytest
import torch
from pocket_runs import Lines, small_config, write_films

from reelora.errors import ConfigError
from reelora.recipes import Silent, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
"""What torch's own tracing does; it hides them from users."""


@pytest.fixture
def settings(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    write_films(clips, 9)
    return small_config(tmp_path / "run", clips, loop__steps=1, loop__compile=True, data__held_out=0, preview__every=0)


def test_without_a_compiler_it_ends_before_any_clip_is_encoded(settings, monkeypatch):
    def broken(graph, inputs):
        raise FileNotFoundError("g++ is not there")

    torch._dynamo.reset()
    monkeypatch.setattr("reelora.train.compiled.MAKING", {"backend": broken})
    with pytest.raises(ConfigError, match=r"apt install g\+\+.*loop\.compile = false"):
        train(settings, listener=Silent())
    assert [path.name for path in settings.data.folder.iterdir() if path.suffix not in (".mp4", ".txt")] == []
    assert not settings.output.exists()


def test_it_says_what_is_compiled(settings, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr("reelora.train.compiled.MAKING", {"backend": "aot_eager"})
    lines = Lines()
    assert train(settings, listener=lines).result.is_complete
    assert [line for line in lines.said if line.startswith("compile ") and "CogVideoXBlock" in line]
    torch._dynamo.reset()
