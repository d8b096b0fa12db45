"""Run ``msight-bus`` on a terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(*arguments: str, columns: int = 80, **variables: str) -> tuple[int, str]:
    """Return the exit status of ``msight-bus`` and the text of its terminal, without colours."""
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment |= {"TERM": "xterm", **variables}
    pid, terminal = pty.fork()
    if not pid:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        os.execve(sys.executable, [sys.executable, "-m", "msight_bus", *arguments], environment)
    said = b""
    try:
        while more := os.read(terminal, 4096):
            said += more
    except OSError:  # the program has ended
        pass
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, _ESCAPES.sub("", said.decode(errors="replace")).replace("\r\n", "\n")
