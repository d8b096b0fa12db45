"""A server process that never outlives us.

A watchdog, one small shell, reads a pipe that only this interpreter holds open. However we end, by SIGKILL
too, the kernel closes the pipe, and the watchdog kills the server and removes its folder. That works on Linux
and macOS, whichever thread starts the server and whatever it is written in. (Linux's PR_SET_PDEATHSIG fires
when the *thread* that started the server ends.) One limit: a process forked from this one without exec,
as by multiprocessing's ``fork``, holds the pipe open too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Reads which process group to kill, a line each time that changes (empty: none), until the pipe closes.
# What was killed may write for a moment more, hence the repetition.
_WATCH = """
while read -r line; do group=$line; done
[ -z "$group" ] || kill -s KILL -- "-$group"
[ -z "$2" ] || docker rm --force "$2"
tries=0; until rm -rf -- "$1" || [ "$tries" -ge 20 ]; do tries=$((tries + 1)); sleep 1; done
"""

# Tells the watchdog its own number before it becomes the server: there is no moment without a guard.
_SERVE = 'echo "$$"; exec "$@" >&2'

_GRACE = 20.0  # seconds for an orderly end


class GuardedProcess:
    """One process at a time, its folder, and the watchdog that ends both when this interpreter is gone.

    The process leads a session of its own, so that Ctrl-C in a terminal reaches us, and it only through us.

    Args:
        folder: where it runs; removed at the end.
        log_path: file that takes its output.
        container: name of the Docker container that it is attached to, which then gets the signals.
    """

    def __init__(self, folder: Path, log_path: Path, *, container: str | None = None) -> None:
        self._folder = folder
        self._log_path = log_path
        self._container = container
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
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        if self._process is None or self._process.returncode is not None:
            return False
        if self._process.poll() is None:
            return True
        self.wait()
        return False

    def start(self, argv: Sequence[str]) -> None:
        """Start a process, once the one before has ended; its output is added to the log."""
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
        """Wait for the end; return the exit code (negative: the signal that ended it; 0 if it never started).

        Raises:
            subprocess.TimeoutExpired: it runs longer than ``timeout`` seconds.
        """
        if self._process is None:
            return 0
        code = self._process.wait(timeout)
        with contextlib.suppress(OSError):
            os.write(self._pipe, b"\n")  # its number may now go to a stranger
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children; nothing happens when it has ended."""
        if self._process is None or not self.is_running:
            return
        if self._container:
            kill = ["docker", "kill", f"--signal={number.name}", self._container]
            subprocess.run(kill, check=False, capture_output=True)
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended just now; macOS: EPERM
                os.killpg(self._process.pid, number)

    def freeze(self) -> None:
        """Stop the process and its children (SIGSTOP); return once all its threads have stopped, which takes time under load."""
        self.signal(signal.SIGSTOP)
        if self.is_running and not self._container and hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            assert self._process is not None
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def kill(self) -> None:
        """End the process at once (SIGKILL), and wait until it has ended."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """End the process in order (SIGTERM), at once if that takes longer than 20 s."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a frozen one would never see it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(_GRACE)
        self.kill()

    def close(self) -> None:
        """Kill the process and remove its folder. With the data gone, an orderly end would serve nobody."""
        if self._pipe < 0:
            return
        self.kill()
        os.close(self._pipe)
        self._pipe = -1
        self._watchdog.wait()
