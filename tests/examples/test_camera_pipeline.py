"""The demo as a user runs it, on a second of footage made here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import cv2
import numpy as np
import pytest

from tests.support.programs import run

FRAMES = 20


@pytest.fixture
def footage(tmp_path):
    """A bright car crosses a grey street."""
    folder = tmp_path / "camera"
    folder.mkdir()
    noise = np.random.default_rng(1).integers(90, 110, (240, 320, 3), np.uint8)
    for i in range(FRAMES):
        picture = noise.copy()
        cv2.rectangle(picture, (10 + 12 * i, 100), (60 + 12 * i, 140), (250, 250, 250), -1)
        captured = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=50 * i)
        cv2.imwrite(str(folder / captured.strftime("%Y-%m-%d %H-%M-%S-%f.jpg")), picture)
    return folder


@pytest.mark.parametrize("backend", ["memory", "redis", "nats", "kafka"])
def test_every_frame_reaches_the_sink_and_a_picture_is_left(backend, footage, tmp_path):
    out = tmp_path / "out"
    options = ["--backend", backend, "--frames", str(footage), "--out", str(out)]
    output = run("-m", "examples.camera_pipeline", *options, backend="memory")
    assert f"{FRAMES} of {FRAMES} reached the sink" in output
    assert "dropped by queues  0" in output
    assert ("two detectors share" in output) == (backend != "redis")
    assert cv2.imread(str(out / "summary.png")).shape[0] > 200
    clip = cv2.VideoCapture(str(next(out.glob("clip.*"))))
    assert clip.get(cv2.CAP_PROP_FRAME_COUNT) == FRAMES
    clip.release()


def test_a_wrong_folder_is_one_clear_sentence(tmp_path):
    with pytest.raises(AssertionError, match="holds no .jpg"):
        run("-m", "examples.camera_pipeline", "--frames", str(tmp_path), "--backend", "memory")
