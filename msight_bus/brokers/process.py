"""A server process that ends with this process.

A watchdog, a small shell, reads a pipe that only this process holds open. When this process ends, even by SIGKILL, the kernel
closes the pipe, and the watchdog kills the server and removes its folder. This works on Linux and macOS and from any thread;
Linux's PR_SET_PDEATHSIG would fire when the *thread* that started the server ends. A process forked from this one without exec,
as by multiprocessing's ``fork``, also holds the pipe open.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakSet

# Reads the process group to kill, one line for each change (empty: none), until the pipe closes. Removing the folder is
# repeated, because killed processes can still write files.
_WATCH = """
while read -r line; do group=$line; done
[ -z "$group" ] || kill -s KILL -- "-$group"
[ -z "$2" ] || docker rm --force "$2"
tries=0; until rm -rf -- "$1" || [ "$tries" -ge 20 ]; do tries=$((tries + 1)); sleep 1; done
"""

# Writes its process id to the watchdog before it executes the server, so that the server is guarded from the start.
_SERVE = 'echo "$$"; exec "$@" >&2'

_GRACE = 20.0  # seconds after SIGTERM


_guarded: WeakSet[GuardedProcess] = WeakSet()


def kill_all() -> None:
    """Kill every guarded process of this interpreter."""
    for guarded in list(_guarded):
        guarded.signal(signal.SIGKILL)


class GuardedProcess:
    """One process at a time, its folder, and the watchdog that kills the process and removes the folder with this interpreter.

    The process runs in its own session, so that Ctrl-C in a terminal does not reach it.

    Args:
        folder: working directory; removed at the end.
        log_path: file for the output of the process.
        container: name of the Docker container to which the process is attached, and which receives the signals.
    """

    def __init__(self, folder: Path, log_path: Path, *, container: str | None = None) -> None:
        self._folder = folder
        self._log_path = log_path
        self._container = container
        _guarded.add(self)
        self._process: subprocess.Popen[bytes] | None = None
        read_end, self._pipe = os.pipe()
        try:
            self._watchdog = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, "msight-bus-watchdog", str(folder), container or ""],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(read_end)

    @property
    def pid(self) -> int | None:
        """Process id; ``None`` before ``start``."""
        return self._process.pid if self._process else None

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._pipe < 0

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        if self._process is None or self._process.returncode is not None:
            return False
        if self._process.poll() is None:
            return True
        self.wait()
        return False

    def start(self, argv: Sequence[str]) -> None:
        """Start a process after the previous one has ended; its output is appended to the log."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SERVE, "sh", *argv],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=self._pipe,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process and return its exit code: negative for a signal, 0 if no process was started.

        Raises:
            subprocess.TimeoutExpired: the process did not end within ``timeout`` seconds.
        """
        if self._process is None:
            return 0
        code = self._process.wait(timeout)
        with contextlib.suppress(OSError):
            os.write(self._pipe, b"\n")  # the process id can be reused now
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children; do nothing if the process has ended."""
        if self._process is None or not self.is_running:
            return
        if self._container:
            kill = ["docker", "kill", f"--signal={number.name}", self._container]
            subprocess.run(kill, check=False, capture_output=True)
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended; macOS: EPERM
                os.killpg(self._process.pid, number)

    def freeze(self) -> None:
        """Stop the process and its children (SIGSTOP); return once all its threads have stopped, which takes time under load."""
        self.signal(signal.SIGSTOP)
        if self.is_running and not self._container and hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            assert self._process is not None
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def kill(self) -> None:
        """Kill the process (SIGKILL) and wait for its end."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """Terminate the process (SIGTERM); kill it after 20 s."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a stopped process does not handle SIGTERM
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(_GRACE)
        self.kill()

    def close(self) -> None:
        """Kill the process and remove its folder."""
        if self.is_closed:
            return
        self.kill()
        os.close(self._pipe)
        self._pipe = -1
        self._watchdog.wait()
