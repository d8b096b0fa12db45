"""The command line: ``msight-bus``, or ``python -m msight_bus``."""

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback, even while modules are imported."""
    try:
        _open_closed_streams()
        _unset_invalid_size()
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without UTF-8
        from msight_bus.cli import app  # noqa: PLC0415 - see above
        from msight_bus.cli.exit_status import checked_output  # noqa: PLC0415

        with checked_output():
            app(prog_name="msight-bus")
    except KeyboardInterrupt:
        sys.exit(130)


def _open_closed_streams() -> None:
    """Open the null device for each standard stream that the caller closed, so that no socket gets its file descriptor."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the end


def _unset_invalid_size() -> None:
    """Unset COLUMNS and LINES unless they are positive numbers: rich prints nothing at a width of 0."""
    for name in ("COLUMNS", "LINES"):
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isdigit() and value.strip("0")):
            os.environ.pop(name, None)


if __name__ == "__main__":
    main()
