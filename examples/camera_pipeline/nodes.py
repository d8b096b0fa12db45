"""The pipeline: camera -> detectors (a group) -> tracker -> sink. Each is a node and knows only its topics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from msight_bus import ImageData, NodeConfig, Outgoing, ProcessingNode, QueuePolicy, SinkNode, SourceNode, off_loop

from .detection import Detections, Detector
from .footage import Frame, paced
from .pictures import decode
from .render import Annotator, ClipWriter
from .reorder import Reorder
from .summary import Summary
from .tracking import Tracked, Tracker

FRAMES, DETECTIONS, TRACKS = "demo.frames", "demo.boxes", "demo.tracks"
_HEARTBEAT = 0.5
_LAST_FRAME_WITHIN = 10.0
_KEYS = 16


class DetectedImage(ImageData, kw_only=True):
    """A frame and what was found in it."""

    found: Detections


class TrackedImage(ImageData, kw_only=True):
    """A frame and the road users in it."""

    tracked: Tracked


def config(name: str, **fields: object) -> NodeConfig:
    return NodeConfig(name=name, heartbeat_update_interval=_HEARTBEAT, logging_level="WARNING", **fields)  # type: ignore[arg-type]


class Camera(SourceNode):
    """Gives the footage at its own pace. It ends when the sink has the last frame."""

    def __init__(self, frames: Iterator[Frame], sink: Sink) -> None:
        super().__init__(config("camera", publish_topic_name=FRAMES))
        self._frames = frames
        self._sink = sink
        self.sent = 0

    async def stream(self):
        await self._sink.others_ready(self.bus)
        last = -1
        async for frame in paced(self._frames):
            image = ImageData(
                image=frame.jpeg, capture_timestamp=frame.captured, frame_id=frame.index, sensor_name=frame.sensor
            )
            last = frame.index
            self.sent += 1
            # Frames are independent of each other, so a key spreads them over a group's workers on Kafka.
            yield Outgoing(image, key=str(frame.index % _KEYS))
        await self._sink.has_seen(last)


class DetectorNode(ProcessingNode):
    """Finds what moves; two of these share the frames where the broker can."""

    def __init__(self) -> None:
        super().__init__(
            config(
                "detector",
                subscribe_topic_name=FRAMES,
                publish_topic_name=DETECTIONS,
                group_id="detectors",
                queue=QueuePolicy.drop_oldest(50),
            )
        )
        self._detector = Detector()

    async def process(self, data: ImageData) -> Outgoing:
        frame = Frame(data.image or b"", data.capture_timestamp, data.frame_id, data.sensor_name or "")
        found = await off_loop(self._detector.detect, frame)
        image = DetectedImage(
            image=data.image,
            capture_timestamp=data.capture_timestamp,
            creation_timestamp=data.creation_timestamp,
            frame_id=data.frame_id,
            sensor_name=data.sensor_name,
            found=found,
        )
        return Outgoing(image, key="tracks")


class TrackerNode(ProcessingNode):
    """Puts the workers' frames back in order and joins their boxes to tracks."""

    def __init__(self) -> None:
        super().__init__(config("tracker", subscribe_topic_name=DETECTIONS, publish_topic_name=TRACKS))
        self._order: Reorder[DetectedImage] = Reorder(patience=50)  # a worker may run a fetch ahead of the other
        self._tracker = Tracker()

    async def process(self, data: DetectedImage) -> list[TrackedImage]:
        return [self._track(image) for image in self._order.push(data.frame_id, data)]

    async def on_stop(self) -> None:
        """What waited behind a frame that never came."""
        async with self.bus.publisher(TRACKS) as publisher:
            for image in self._order.flush():
                await publisher.send(self._track(image))

    def _track(self, image: DetectedImage) -> TrackedImage:
        return TrackedImage(
            image=image.image,
            capture_timestamp=image.capture_timestamp,
            creation_timestamp=image.creation_timestamp,
            frame_id=image.frame_id,
            sensor_name=image.sensor_name,
            tracked=self._tracker.update(image.found),
        )


class Sink(SinkNode):
    """Draws the tracks, writes the clip and the summary, and keeps the latencies from camera to here."""

    def __init__(self, out: Path, rate: float, expected: set[str]) -> None:
        super().__init__(config("sink", subscribe_topic_name=TRACKS))
        self._annotator = Annotator()
        self._expected = expected
        self._seen = asyncio.Event()
        self._last = -1
        self._awaited: int | None = None
        self.clip = ClipWriter(out / "clip.mp4", rate)
        self.summary = Summary()
        self.latencies: list[float] = []
        self.objects = 0

    async def on_message(self, data: TrackedImage) -> None:
        self.latencies.append(time.time() - data.creation_timestamp)
        await off_loop(self._draw, data)
        self.objects = data.tracked.total
        self._last = data.frame_id
        if self._last == self._awaited:
            self._seen.set()

    def _draw(self, data: TrackedImage) -> None:
        picture, _ = decode(data.image or b"")
        milliseconds = self.latencies[-1] * 1000
        caption = (
            f"{data.sensor_name}  frame {data.frame_id}  {data.tracked.total} road users  {milliseconds:.0f} ms behind"
        )
        annotated = self._annotator.draw(picture, data.tracked, caption)
        self.summary.add(picture, annotated, data.tracked)
        self.clip.write(annotated)

    async def others_ready(self, bus) -> None:
        """Wait until the nodes behind the camera have subscribed: a live stream keeps nothing for those who are late."""
        registry = await bus.nodes()
        await registry.wait_until(
            lambda nodes: self._expected <= {info.name for info in nodes if info.status == "RUNNING"}
        )

    async def has_seen(self, frame_id: int) -> None:
        """Wait for the last frame, but not for ever: it may have been dropped, and that was counted."""
        if self._last != frame_id:
            self._awaited = frame_id
            await asyncio.wait((asyncio.ensure_future(self._seen.wait()),), timeout=_LAST_FRAME_WITHIN)
