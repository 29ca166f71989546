"""``reelora`` and ``python -m reelora``: the command line as a process of its own."""

import _thread
import io
import signal
import sys
import threading
from types import FrameType

__all__ = ["run"]

STOPPED = 130
_SOON = 0.01
"""Seconds."""


def run() -> None:
    """Run the command line. Ctrl-C at any moment, in the imports too, is one line and exit code 130."""
    ctrl_c = _CtrlC()
    sys.unraisablehook = _unraisable
    try:
        try:
            _print_every_name()
            from reelora.cli import main

            main()
        finally:
            _end_of_work()
    except BaseException as error:
        if not ctrl_c.is_behind(error):
            raise
    else:
        return
    _end_of_work()  # again, for a Ctrl-C that came just before the first one
    sys.stderr.write("reelora: stopped. What is finished is kept, and nothing is half-written.\n")
    sys.exit(STOPPED)


def _print_every_name() -> None:
    """What the encoding of the terminal lacks, as in the name of a file that is no text, is spelled out and ends nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _CtrlC:
    """Remembers that Ctrl-C was pressed: some libraries make another error of it when it strikes in their imports."""

    def __init__(self) -> None:
        self._is_pressed = False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored by what a shell runs in the background
            signal.signal(signal.SIGINT, self._press)

    def is_behind(self, error: BaseException) -> bool:
        """Whether a command that ends so was stopped by its user."""
        if isinstance(error, SystemExit):
            return error.code == STOPPED
        return self._is_pressed or isinstance(error, KeyboardInterrupt)

    def _press(self, number: int, frame: FrameType | None) -> None:
        self._is_pressed = True
        raise KeyboardInterrupt


def _end_of_work() -> None:
    """From here on there is nothing to stop, only an interpreter that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Where Ctrl-C struck the exec of a string, as imports of dataclasses do, CPython remembers it until the next one, and would
    # end the process by the signal though it was dealt with.
    exec("")


def _unraisable(args: "sys.UnraisableHookArgs") -> None:
    """Ctrl-C that struck where nothing can be raised, as in a callback of the import machinery, comes again a moment later."""
    if issubclass(args.exc_type, KeyboardInterrupt):
        threading.Timer(_SOON, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(args)


if __name__ == "__main__":
    run()
