"""End ``msight-bus`` without a traceback when Ctrl-C arrives while the package is imported. Other programs are not affected."""

import os
import signal
import sys

_program = os.path.basename(sys.argv[0]) if sys.argv else ""  # noqa: PTH119 - before anything else is imported
_is_command = _program == "msight-bus" or (_program == "-m" and "msight_bus" in sys.orig_argv)


def _end(*_: object) -> None:
    os._exit(130)


def end_of_imports() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` from now on."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
