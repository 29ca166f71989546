"""SAT checkpoints and YAML files that mean harm: nothing of them runs, and nothing takes for ever."""

import time
from pathlib import Path

import pytest
from oracle import GOLDEN
from pickles import call, named, part, tensor, whole, zipped

from reelora.components import load_components, read_model
from reelora.errors import ComponentError, ConfigError, FileFormatError

CONFIG = GOLDEN / "t2v_2b" / "model.yaml"
WEIGHT = part("model.diffusion_model.time_embed.0.bias")


def in_module(value: bytes) -> bytes:
    """A pickle of ``{"module": {"model...": tensor, "x": value}}``."""
    inner = b"}(" + WEIGHT + tensor() + part("x") + value + b"u"
    return whole(b"}(" + part("module") + inner + b"u")


HARM = {
    "os.system": call(named("os:system"), part("touch ran")),
    "posix.system": call(named("posix:system"), part("touch ran")),
    "builtins.eval": call(named("builtins:eval"), part("open('ran', 'w')")),
    "builtins.getattr": call(named("builtins:getattr"), named("os:environ"), part("copy")),
    "nested": call(named("functools:partial"), call(named("builtins:eval"), part("1"))),
    "deep": call(call(named("operator:attrgetter"), part("system")), named("os:path")),
    "subprocess.Popen": call(named("subprocess:Popen"), part(["touch", "ran"])),
    "torch.load": call(named("torch:load"), part("elsewhere.pt")),
    "numpy eval": call(named("numpy.testing._private.utils:runstring"), part("open('ran', 'w')"), part({})),
}


@pytest.mark.parametrize("what", HARM)
def test_a_checkpoint_that_would_run_something_is_refused_by_name(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sat" / "1"
    folder.mkdir(parents=True)
    (tmp_path / "sat" / "latest").write_text("1")
    (folder / "mp_rank_00_model_states.pt").write_bytes(zipped(in_module(HARM[what])))
    with pytest.raises(FileFormatError, match=r"no part of a checkpoint|no tensor|damaged") as refused:
        load_components(tmp_path / "sat", roles=["transformer"], sat_config=CONFIG)
    assert "mp_rank_00_model_states.pt" in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_the_checkpoint_without_the_harm_would_have_been_read(tmp_path):
    (tmp_path / "a.pt").write_bytes(zipped(in_module(part(1))))
    with pytest.raises(ComponentError, match=r"does not fit|position table is missing"):
        load_components(tmp_path / "a.pt", roles=["transformer"], sat_config=CONFIG)


def config_with(text: str, folder: Path) -> Path:
    path = folder / "model.yaml"
    path.write_text(text)
    return path


BOMB = "model:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
HOSTILE = {
    "aliases that unfold without end": BOMB,
    "a list that holds itself": "model: &a [*a]\n",
    "a section that holds itself": "model: &a\n  b: *a\n",
    "a thousand lists in each other": "model: " + "[" * 1000 + "]" * 1000,
    "a hundred thousand lists in each other": "model: " + "[" * 100_000,
    "an object of Python": "model: !!python/object/apply:os.system ['touch ran']\n",
    "a name of Python": "model: !!python/name:os.system\n",
    "a module of Python": "model:\n  a: !!python/module:os\n",
    "a new object": "model: !!python/object/new:subprocess.Popen [['touch', 'ran']]\n",
    "a megabyte of settings": "model:\n" + "".join(f"  k{n}: 1\n" for n in range(90_000)),
    "bytes that are no text": "model: \udcff",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_yaml_that_means_harm_is_refused_at_once(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.yaml"
    path.write_bytes(HOSTILE[what].encode(errors="surrogateescape"))
    started = time.monotonic()
    with pytest.raises(FileFormatError, match=r"model\.yaml"):
        read_model([path])
    assert time.monotonic() - started < 20
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("setting", ["num_layers", "latent_width", "num_frames", "hidden_size"])
def test_a_network_that_takes_for_ever_to_describe_is_refused(setting, tmp_path):
    text = "\n".join(
        f"{line.partition(':')[0]}: 1000000000" if line.strip().startswith(f"{setting}:") else line
        for line in CONFIG.read_text().splitlines()
    )
    with pytest.raises(ConfigError, match=f"{setting} is 1000000000, it must be a whole number from 1 to"):
        read_model([config_with(text, tmp_path)])


def test_names_in_a_yaml_are_compared_and_never_imported(tmp_path):
    module = tmp_path / "made_to_be_imported.py"
    module.write_text("raise SystemExit\n")
    text = CONFIG.read_text().replace("dit_video_concat.DiffusionTransformer", "made_to_be_imported.Anything")
    with pytest.raises(ConfigError, match=r"target is 'made_to_be_imported\.Anything'; what is known here is"):
        read_model([config_with(text, tmp_path)])


def test_paths_in_a_yaml_lead_to_nothing_but_a_message(tmp_path):
    text = CONFIG.read_text() + "args:\n  load: /dev/zero\n"
    with pytest.raises((FileFormatError, OSError, ConfigError)):
        load_components(None, roles=["transformer"], sat_config=config_with(text, tmp_path))
