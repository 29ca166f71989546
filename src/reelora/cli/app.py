"""The verbs, and what becomes of errors."""

import sys
from typing import Annotated, NoReturn

import typer

from reelora import __version__
from reelora.errors import ReeloraError

from . import (
    cache,
    checkpoint,
    convert,
    demo,
    diff,
    doctor,
    extract,
    fuse,
    generate,
    inspect,
    merge,
    plan,
    precompute,
    resize,
    train,
)

__all__ = ["main"]

USERS_MISTAKE = 2
OUT_OF_MEMORY_ADVICE = (
    "The device has too little memory for this. Use fewer frames or a smaller size. In training --set loop.memory=GIB, less "
    "than this run took, or --set loop.gradient_checkpointing=true: the run goes on from its last checkpoint, bit for bit. "
    "Where that is not enough: a new run with a smaller loop.batch_size and more loop.gradient_accumulation, or a smaller "
    "lora.rank."
)
VERBS = (
    demo.demo,
    doctor.doctor,
    plan.plan,
    inspect.inspect,
    convert.convert,
    merge.merge,
    resize.resize,
    extract.extract,
    diff.diff,
    fuse.fuse,
    checkpoint.checkpoint,
    precompute.precompute,
    train.train,
    generate.generate,
)

app = typer.Typer(
    name="reelora",
    help="Teaches, checks, combines and runs LoRA adapters for video diffusion models.",
    epilog="Begin with: reelora demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in VERBS:
    app.command()(verb)
app.add_typer(cache.app)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"reelora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run one verb. A user's mistake is a clear message and exit code 2; Ctrl-C is exit code 130."""
    try:
        app()
    except (ReeloraError, OSError) as error:
        _end(_text(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        _end("\n".join([str(error), *getattr(error, "__notes__", [OUT_OF_MEMORY_ADVICE])]))


def _end(message: str) -> NoReturn:
    print(f"reelora: {_harmless(message)}", file=sys.stderr)
    sys.exit(USERS_MISTAKE)


def _harmless(message: str) -> str:
    """Without the control characters that a name in a file may bring to the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in message)


def _text(error: ReeloraError | OSError) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
