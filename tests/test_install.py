"""`make` installs quietly, and says in one sentence what is missing."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
INSTALL = PROJECT / ".ci/install.py"
COUNT = re.compile(r"Packages installed: \d+ of \d+")


def wheel(folder, name):
    """A package without code, which pip installs without a network."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def install(environment, *arguments, **variables):
    return subprocess.run(
        [sys.executable, INSTALL, environment, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )


def test_without_the_package_of_venv_one_sentence_names_it_and_nothing_is_left(tmp_path):
    (tmp_path / "ensurepip.py").write_text("raise ImportError")  # as on Debian without python3-venv
    done = install(tmp_path / "environment", "--no-index", "nothing", PYTHONPATH=str(tmp_path))
    version = ".".join(map(str, sys.version_info[:2]))
    assert done.returncode == 1
    assert done.stderr.startswith(f"The package python{version}-venv is missing")
    assert len((done.stdout + done.stderr).splitlines()) == 1
    assert not (tmp_path / "environment").exists()


def test_an_environment_that_cannot_be_completed_is_removed(tmp_path):
    (tmp_path / "venv.py").write_text("import os, sys; os.makedirs(sys.argv[-1] + '/bin'); sys.exit('no space left')")
    done = install(tmp_path / "environment", "--no-index", "nothing", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["no space left", f"The environment {tmp_path / 'environment'} cannot be made."]
    assert not (tmp_path / "environment").exists()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Half-made, as an interrupted run leaves it."""
    folder = tmp_path_factory.mktemp("install") / "environment"
    (folder / "bin").mkdir(parents=True)
    done = install(folder, "--no-index", *(wheel(folder.parent, f"package{i}") for i in range(10)))
    lines = [line for line in done.stdout.splitlines() if not COUNT.fullmatch(line)]  # none if pip is fast
    assert lines == [
        f"Making the environment {folder}",
        "Packages found: 10",
        "Packages to install: 10",
    ]
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_a_terminal_shows_one_line_that_counts(environment, tmp_path):
    terminal, end = pty.openpty()
    wheels = [wheel(tmp_path, name) for name in ("one", "two")]
    subprocess.run([sys.executable, INSTALL, environment, "--no-index", *wheels], check=True, stdout=end)
    os.close(end)
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    shown = re.sub("\r\033\\[K" + COUNT.pattern, "", shown)
    assert shown == "\r\033[KPackages found: 1\r\033[KPackages found: 2\r\033[KPackages to install: 2\r\n"


def test_packages_are_counted_while_pip_says_nothing(tmp_path):
    script = (
        "import pathlib, time\n"
        "print('Installing collected packages: a, b, c', flush=True)\n"
        "for name in 'abc':\n"
        "    path = pathlib.Path('environment/lib/python3/site-packages') / f'{name}.dist-info'\n"
        "    path.mkdir(parents=True)\n"
        "    (path / 'INSTALLER').touch()\n"
        "    time.sleep(1.2)\n"
    )
    (tmp_path / "environment/bin").mkdir(parents=True)
    for name in ("pip", "python"):
        (tmp_path / "environment/bin" / name).touch()
    (tmp_path / "environment/bin/python").write_text(f"#!{sys.executable}\n{script}")
    (tmp_path / "environment/bin/python").chmod(0o755)
    done = subprocess.run(
        [sys.executable, INSTALL, "environment", "x"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[0] == "Packages to install: 3"
    assert done.stdout.splitlines()[-1] in ("Packages installed: 2 of 3", "Packages installed: 3 of 3")


def test_what_pip_says_is_shown_when_it_fails(environment):
    done = install(environment, "--no-index", "no-such-package")
    assert done.returncode == 1
    assert "No matching distribution found for no-such-package" in done.stderr
    assert "pip failed" in done.stderr.splitlines()[-1]


def test_the_demo_installs_nothing_that_only_tests_need(tmp_path):
    (tmp_path / "Makefile").write_text((PROJECT / "Makefile").read_text())
    (tmp_path / ".ci").mkdir()
    for name in ("pyproject.toml", ".ci/constraints.txt", ".ci/requirements.txt"):
        (tmp_path / name).touch()

    def commands(target):
        return subprocess.run(
            ["make", "-n", "--no-print-directory", target, "PYTHON=python3"],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    assert "'.[brokers,images]'" in commands("demo")
    assert "requirements" not in commands("demo")
    assert "-r .ci/requirements.txt" in commands("test")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/installed").touch()
    assert "install" not in commands("demo")
