"""Run the vision code of the pipeline in one process, without a broker; the results are those of the pipeline.

python -m examples.camera_pipeline.offline [--frames FOLDER|VIDEO] [--rate 10] [--out out/offline]
"""

import argparse
from pathlib import Path

from .detection import Detector
from .footage import RATE, cameras
from .pictures import FootageError
from .results import Results
from .tracking import Tracker


def run(frames: Path | None, rate: float, out: Path) -> Results:
    """Detect the road users in the footage; write a table per camera and a picture to ``out``."""
    results = Results(out)
    for footage in cameras(frames, rate).values():
        detector, tracker = Detector(), Tracker()
        for frame in footage:
            tracks = tracker.update(detector.detect(frame), frame.captured)
            results.add(frame, tracks, tracker.total)
    results.write("Road users, without a broker", [("road users", results.road_users)])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--out", type=Path, default=Path("out/offline"))
    asked = parser.parse_args()
    try:
        results = run(asked.frames, asked.rate, asked.out)
    except FootageError as error:
        raise SystemExit(str(error)) from None
    print(f"road users: {results.road_users}; tables and picture in {asked.out}")


if __name__ == "__main__":
    main()
