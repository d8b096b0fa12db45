"""The nodes of the pipeline: one source and one detector per camera, one tracker, one sink."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator

from msight_bus import Bus, ImageData, NodeConfig, ProcessingNode, QueuePolicy, SinkNode, SourceNode, off_loop

from .detection import Box, Detector
from .footage import Frame, paced
from .results import Results
from .tracking import Track, Tracker

BOXES, TRACKS = "demo.boxes", "demo.tracks"
_HEARTBEAT = 0.5
_QUEUE = QueuePolicy.drop_oldest(500)
"""A node that falls behind by more than 500 frames drops the oldest, which the bus counts."""
_LAST_FRAME_WITHIN = 10.0


class DetectedImage(ImageData, kw_only=True):
    """A frame and the boxes of its moving objects."""

    boxes: list[Box]


class TrackedImage(ImageData, kw_only=True):
    """A frame and the tracks of its road users."""

    tracks: list[Track]
    total: int
    """Number of different road users of this camera so far."""


def config(name: str, **fields: object) -> NodeConfig:
    return NodeConfig(name=name, heartbeat_update_interval=_HEARTBEAT, logging_level="WARNING", **fields)  # type: ignore[arg-type]


def frame_of(image: ImageData) -> Frame:
    return Frame(image.sensor_name or "", image.frame_id, image.capture_timestamp, image.image or b"")


def frames_topic(camera: str) -> str:
    return f"demo.frames.{camera}"


class CameraNode(SourceNode):
    """Publishes the frames of one camera at their capture times, and ends after the sink has received the last frame."""

    def __init__(self, camera: str, frames: Iterator[Frame], sink: Sink) -> None:
        super().__init__(config(f"camera_{camera}", publish_topic_name=frames_topic(camera)))
        self._camera = camera
        self._frames = frames
        self._sink = sink
        self.sent = 0

    async def stream(self) -> AsyncIterator[ImageData]:
        await self._sink.others_ready(self.bus)
        async for frame in paced(self._frames):
            self.sent += 1
            yield ImageData(
                image=frame.jpeg, capture_timestamp=frame.captured, frame_id=frame.index, sensor_name=frame.camera
            )
        await self._sink.has_seen(self._camera, self.sent - 1)


class DetectorNode(ProcessingNode):
    """Detects moving objects in the frames of one camera.

    The detector keeps state of earlier frames, so each camera needs its own. For stateless code, a group of workers can share
    the frames; see examples/load_sharing.py.
    """

    def __init__(self, camera: str) -> None:
        topics = {"subscribe_topic_name": frames_topic(camera), "publish_topic_name": BOXES}
        super().__init__(config(f"detector_{camera}", key=camera, queue=_QUEUE, **topics))
        self._detector = Detector()

    async def process(self, data: ImageData) -> DetectedImage:
        boxes = await off_loop(self._detector.detect, frame_of(data))
        return DetectedImage(
            image=data.image,
            capture_timestamp=data.capture_timestamp,
            creation_timestamp=data.creation_timestamp,
            frame_id=data.frame_id,
            sensor_name=data.sensor_name,
            boxes=boxes,
        )


class TrackerNode(ProcessingNode):
    """Assigns the boxes of each camera to tracks. The frames of each detector arrive in order."""

    def __init__(self) -> None:
        super().__init__(config("tracker", subscribe_topic_name=BOXES, publish_topic_name=TRACKS, queue=_QUEUE))
        self._trackers: dict[str | None, Tracker] = defaultdict(Tracker)

    async def process(self, data: DetectedImage) -> TrackedImage:
        tracker = self._trackers[data.sensor_name]
        tracks = tracker.update(data.boxes, data.capture_timestamp)
        return TrackedImage(
            image=data.image,
            capture_timestamp=data.capture_timestamp,
            creation_timestamp=data.creation_timestamp,
            frame_id=data.frame_id,
            sensor_name=data.sensor_name,
            tracks=tracks,
            total=tracker.total,
        )


class Sink(SinkNode):
    """Collects the results, and the latencies from the camera to the sink."""

    def __init__(self, results: Results, expected: set[str]) -> None:
        super().__init__(config("sink", subscribe_topic_name=TRACKS, queue=_QUEUE))
        self._expected = expected
        self._results = results
        self._last: dict[str, int] = {}
        self._progress = asyncio.Condition()
        self.latencies: list[float] = []

    async def on_message(self, data: TrackedImage) -> None:
        self.latencies.append(time.time() - data.creation_timestamp)
        frame = frame_of(data)
        await off_loop(self._results.add, frame, data.tracks, data.total)
        async with self._progress:
            self._last[frame.camera] = frame.index
            self._progress.notify_all()

    async def others_ready(self, bus: Bus) -> None:
        """Wait until the other nodes have subscribed, because Redis and NATS keep no messages for later subscribers."""
        registry = await bus.nodes()
        await registry.wait_until(
            lambda nodes: self._expected <= {info.name for info in nodes if info.status == "RUNNING"}
        )

    async def has_seen(self, camera: str, index: int) -> None:
        """Wait for a camera's last frame, with a timeout, because a queue can drop it."""
        async with self._progress:
            while self._last.get(camera, -1) < index:
                try:
                    await asyncio.wait_for(self._progress.wait(), _LAST_FRAME_WITHIN)
                except TimeoutError:
                    return
