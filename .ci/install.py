"""Install requirements into a virtual environment, which is made if it is missing. A counter stands for pip's output.

python .ci/install.py ENVIRONMENT ARGUMENT_OF_PIP...

pip's output is shown when pip fails. An environment that cannot be completed is removed.
"""

from __future__ import annotations

import select
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def main(folder: str, *arguments: str) -> str | None:
    """Return what went wrong."""
    environment = Path(folder)
    if sys.version_info < (3, 11):  # noqa: UP036 - make starts this with any Python
        return f"Python 3.11 or newer is needed, not {VERSION}. PYTHON=python3.12 make ... chooses one."
    if not (environment / "bin" / "pip").exists():
        try:
            import ensurepip  # noqa: F401, PLC0415 - Debian and Ubuntu have it in a package of its own
        except ImportError:
            return (
                f"The package python{VERSION}-venv is missing: run `sudo apt install python{VERSION}-venv`, "
                "or choose another Python with PYTHON=..."
            )
        print(f"Making the environment {environment}", flush=True)
        made = False
        try:
            made = subprocess.call([sys.executable, "-m", "venv", "--clear", str(environment)]) == 0
        finally:
            if not made:
                shutil.rmtree(environment, ignore_errors=True)
        if not made:
            return f"The environment {environment} cannot be made."
    return install([str(environment / "bin" / "python"), "-m", "pip", "install", *arguments], environment)


def install(command: list[str], environment: Path) -> str | None:
    """Run pip, and count the packages that it finds and installs. Return its output if it fails."""
    found: set[str] = set()
    output = []
    command += ["--progress-bar=off", "--disable-pip-version-check"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout or ():
            output.append(line)
            verb, _, what = line.partition(" ")
            if verb in {"Collecting", "Processing"}:
                found.add(what.split(" (")[0])
                show(f"Packages found: {len(found)}", rarely=True)
            elif line.startswith("Installing collected packages"):
                count_installed(pip, environment, what.count(",") + 1)
    if sys.stdout.isatty():
        print()
    return "".join([*output, f"pip failed: {' '.join(command)}"]) if pip.returncode else None


def count_installed(pip: subprocess.Popen[str], environment: Path, total: int) -> None:
    """Show how many packages are installed until pip, which says nothing meanwhile, has written its last line."""
    pattern = "lib/python*/site-packages/*.dist-info/INSTALLER"
    before = len(list(environment.glob(pattern)))
    show(f"Packages to install: {total}")
    shown = 0
    while select.select([pip.stdout], [], [], 0.5) == ([], [], []):
        installed = min(len(list(environment.glob(pattern))) - before, total)
        if installed > shown:
            shown = installed
            show(f"Packages installed: {shown} of {total}")


def show(text: str, *, rarely: bool = False) -> None:
    """Print one line that changes on a terminal, and lines elsewhere: of those that come often, one in ten."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)
    elif not rarely or text.endswith("0"):
        print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("Stopped.")
