"""The command line: ``msight-bus``, or ``python -m msight_bus``."""

import signal
import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it without a traceback, also while modules are imported."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without UTF-8
        from msight_bus.cli import app  # noqa: PLC0415 - see above
        from msight_bus.cli.exit_status import checked_output  # noqa: PLC0415

        if callable(signal.getsignal(signal.SIGINT)):  # that of `_ctrl_c`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with checked_output():
            app(prog_name="msight-bus")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
