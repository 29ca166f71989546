"""Heavy libraries are imported only where they are used."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "matplotlib", "av", "pydantic")


def imported_by(code: str) -> set[str]:
    """The top-level modules that are loaded after running ``code`` in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy():
    loaded = imported_by(
        "from typer.testing import CliRunner\nfrom reelora.cli.app import app\nCliRunner().invoke(app, ['--help'])"
    )
    assert not loaded & set(HEAVY)


def test_the_public_names_are_there_and_cost_nothing_until_used():
    import reelora

    assert not imported_by("import reelora\ndir(reelora)") & set(HEAVY)
    assert all(hasattr(reelora, name) for name in reelora.__all__)
    assert not hasattr(reelora, "no_such_name")


@pytest.mark.parametrize("room", ["adapters", "lora", "data", "train", "plan", "generate", "catalog", "tensorio", "components"])
def test_no_room_imports_diffusers_by_itself(room):
    assert not imported_by(f"import reelora.{room}") & {"diffusers", "transformers", "matplotlib", "av", "peft"}


def test_inspect_never_imports_diffusers(tmp_path):
    import torch

    from reelora.adapters import Adapter, LoraSpec, Pair, write_adapter

    pair = Pair(torch.ones(2, 4), torch.ones(3, 2), scale=0.5)
    spec = LoraSpec(rank=2, alpha=1, target_modules=("to_q",))
    path = tmp_path / "a.safetensors"
    write_adapter(Adapter(pairs={"transformer.block.to_q": pair}, spec=spec, layout="memory", scale_source="test"), path)
    loaded = imported_by(
        f"sys.argv = ['reelora', 'inspect', {str(path)!r}]\nimport reelora.cli.app as app\napp.app(standalone_mode=False)"
    )
    assert not loaded & {"diffusers", "transformers", "matplotlib", "peft"}
