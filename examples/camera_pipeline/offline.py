"""The whole of the vision in one process and without a broker, with the time that each stage takes.

python -m examples.camera_pipeline.offline [FOLDER] [--workers 2] [--out out]
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from .detection import Detections, Detector
from .footage import clip_frames, folder_frames
from .pictures import FootageError, decode
from .render import Annotator, ClipWriter
from .reorder import Reorder
from .summary import Summary
from .tracking import Tracker


class Stopwatch:
    def __init__(self) -> None:
        self._times: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._times[stage].append(time.perf_counter() - began)

    def lines(self) -> list[tuple[str, str]]:
        return [(stage, _median_and_p99(times)) for stage, times in self._times.items()]


def _median_and_p99(times: list[float]) -> str:
    ordered = sorted(times)
    middle, high = ordered[len(ordered) // 2], ordered[int(0.99 * (len(ordered) - 1))]
    return f"{middle * 1e3:5.1f} ms, p99 {high * 1e3:5.1f}"


def run(folder: Path | None, workers: int, out: Path) -> list[tuple[str, str]]:
    """Writes out/clip.mp4 and out/summary.png; returns the numbers."""
    took = Stopwatch()
    frames = list(folder_frames(folder) if folder else clip_frames())
    detectors = [Detector() for _ in range(workers)]
    order: Reorder[Detections] = Reorder()
    tracker, annotator, summary = Tracker(), Annotator(), Summary()
    rate = (len(frames) - 1) / max(frames[-1].captured - frames[0].captured, 0.001)
    boxes = 0
    with ClipWriter(out / "clip.mp4", rate) as clip:
        for frame in frames:
            with took("decode + detect"):
                found = detectors[frame.index % workers].detect(frame)
            boxes += len(found.boxes)
            for detections in order.push(found.index, found):
                with took("track"):
                    tracked = tracker.update(detections)
                with took("decode full"):
                    picture, _ = decode(frame.jpeg)
                with took("draw"):
                    caption = f"{frame.sensor}   frame {frame.index}   {rate:.0f} fps   {tracked.total} objects"
                    annotated = annotator.draw(picture, tracked, caption)
                with took("summary"):
                    summary.add(picture, annotated, tracked)
                with took("encode"):
                    clip.write(annotated)
    facts = [
        ("frames", f"{len(frames)} at {rate:.0f} fps, {workers} detectors"),
        ("boxes", str(boxes)),
        ("objects", str(tracker.total)),
        *took.lines(),
    ]
    summary.write(out / "summary.png", f"{frames[0].sensor}: {tracker.total} objects", facts)
    return [*facts, ("clip", str(clip.path)), ("picture", str(out / "summary.png"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="JPEGs named by capture time; the street clip if absent")
    parser.add_argument("--workers", type=int, default=1, help="detectors that share the frames")
    parser.add_argument("--out", type=Path, default=Path("out"))
    asked = parser.parse_args()
    cv2.setNumThreads(1)  # what one core can do
    try:
        facts = run(asked.folder, asked.workers, asked.out)
    except FootageError as error:
        raise SystemExit(str(error)) from None
    for name, value in facts:
        print(f"{name:<16} {value}")


if __name__ == "__main__":
    main()
