"""The demo as a user runs it: what it finds is what an offline run of the same code finds, on every backend."""

from __future__ import annotations

import os
import pty
import sys

import cv2
import numpy as np
import pytest

from examples.camera_pipeline import offline
from examples.camera_pipeline.footage import RATE
from tests.support.programs import run

FRAMES = 60


@pytest.fixture(scope="module")
def found_offline(tmp_path_factory):
    out = tmp_path_factory.mktemp("offline")
    offline.run(None, RATE, out)
    return {path.name: path.read_text() for path in out.glob("*.csv")}


@pytest.mark.parametrize("backend", ["memory", "redis", "nats", "kafka"])
def test_the_demo_finds_what_an_offline_run_finds(backend, found_offline, tmp_path):
    output = run("-m", "examples.camera_pipeline", "--backend", backend, "--out", str(tmp_path / "out"))
    assert f"{2 * FRAMES} of {2 * FRAMES} reached the sink" in output
    assert "dropped by queues  0" in output
    assert "road users         ne 2, sw 2" in output
    assert {path.name: path.read_text() for path in (tmp_path / "out").glob("*.csv")} == found_offline
    assert set(found_offline) == {"ne.csv", "sw.csv"}
    assert cv2.imread(str(tmp_path / "out/summary.png")).shape[1] > 1400  # both cameras, side by side


def test_footage_of_ones_own(tmp_path):
    """A bright car crosses a grey street, in files of any names."""
    noise = np.random.default_rng(1).integers(90, 110, (240, 320, 3), np.uint8)
    (tmp_path / "my street").mkdir()
    for i in range(20):
        picture = noise.copy()
        cv2.rectangle(picture, (-60 + 16 * i, 100), (-10 + 16 * i, 140), (250, 250, 250), -1)
        cv2.imwrite(str(tmp_path / f"my street/frame {i:02}.jpg"), picture)
    options = ["--frames", str(tmp_path / "my street"), "--rate", "20", "--out", str(tmp_path / "out")]
    output = run("-m", "examples.camera_pipeline", "--backend", "memory", *options)
    assert "20 of 20 reached the sink" in output
    assert "Not shown on" not in output  # a pipe has no width
    assert "road users         my_street 1" in output
    assert len((tmp_path / "out/my_street.csv").read_text().splitlines()) > 10


def test_a_terminal_keeps_one_table(tmp_path):
    cv2.imwrite(str(tmp_path / "frame.jpg"), np.zeros((48, 64, 3), np.uint8))
    said = []

    def read(terminal):
        said.append(os.read(terminal, 4096))
        return said[-1]

    options = ["--backend", "memory", "--frames", str(tmp_path), "--out", str(tmp_path / "out")]
    pty.spawn(["env", "TERM=xterm", sys.executable, "-m", "examples.camera_pipeline", *options], read)
    *_, live, last = b"".join(said).split(b"Nodes (")
    assert b"\x1b[2K" in live  # erased before the last table
    assert b"1 of 1 reached the sink" in last


def test_a_wrong_folder_is_one_clear_sentence(tmp_path):
    with pytest.raises(AssertionError, match=r"^\S+ has no .jpg.*Set FRAMES=\S+ or video>.\n$"):
        run("-m", "examples.camera_pipeline", "--frames", str(tmp_path), "--backend", "memory")
