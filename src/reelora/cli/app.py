"""The verbs, and what becomes of errors."""

import sys
from typing import Annotated

import typer

from reelora import __version__
from reelora.errors import ReeloraError

from . import demo, generate, inspect, precompute, train

__all__ = ["main"]

USERS_MISTAKE, STOPPED = 2, 130
VERBS = (demo.demo, inspect.inspect, precompute.precompute, train.train, generate.generate)

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
        print(f"reelora: {_text(error)}", file=sys.stderr)
        sys.exit(USERS_MISTAKE)
    except KeyboardInterrupt:
        print("reelora: stopped. Nothing is half-written; the same command goes on.", file=sys.stderr)
        sys.exit(STOPPED)


def _text(error: ReeloraError | OSError) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
