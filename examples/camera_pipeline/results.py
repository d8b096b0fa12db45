"""The results of a run: a table of the tracks of each camera, and one picture."""

import csv
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
from cv2.typing import MatLike

from .footage import Frame
from .pictures import FootageError, decode
from .tracking import Track

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_COLORS = (  # BGR
    (40, 140, 255), (90, 220, 60), (220, 90, 240), (255, 170, 40), (60, 60, 240), (200, 220, 40),
)  # fmt: skip
_PAPER, _INK = (250, 248, 246), (45, 40, 36)
_MARGIN = 12
_PANEL = 700
"""Width of a camera's column."""
_COLUMNS = 2
_TILES = 6
_TILE = (_PANEL - (_TILES - 1) * 8) // _TILES
_ZOOM = 2.5
"""Size of a tile, relative to the box."""
_SHOWN = 4
"""Number of road users per camera in the picture: those with the longest tracks."""
_KEPT = 100
"""Maximum number of road users per camera, and of moments per road user."""


@dataclass
class _Moment:
    captured: float
    center: tuple[float, float]
    tile: MatLike


@dataclass
class _Camera:
    """The results of one camera."""

    table: Path
    jpeg: bytes = b""
    began: float = 0.0
    ended: float = 0.0
    captured: float = 0.0
    """Capture time of the shown frame."""
    tracks: list[Track] = field(default_factory=list)
    road_users: dict[int, list[_Moment]] = field(default_factory=dict)
    total: int = 0

    def add(self, frame: Frame, tracks: list[Track], total: int) -> None:
        self.total = total
        self.ended = frame.captured
        if tracks or not self.tracks:  # the last frame with a track
            self.jpeg, self.captured, self.tracks = frame.jpeg, frame.captured, tracks
        if not tracks:
            return
        picture = decode(frame.jpeg)
        with self.table.open("a", newline="") as table:
            for track in tracks:
                box = (f"{n:.1f}" for n in (track.x, track.y, track.width, track.height))
                csv.writer(table).writerow([f"{frame.captured:.6f}", track.id, *box])
        for track in tracks:
            moments = self.road_users.setdefault(track.id, [])
            centers = [*(moment.center for moment in moments), track.center]
            moments.append(_Moment(frame.captured, track.center, _tile(picture, track, centers, frame.captured)))
            if len(moments) > _KEPT:
                del moments[1::2]
        while len(self.road_users) > _KEPT:
            del self.road_users[next(iter(self.road_users))]

    def draw(self, name: str) -> MatLike:
        """Draw the last frame with its boxes and all trails, and below it each road user at some moments."""
        picture = decode(self.jpeg)
        scale = _PANEL / picture.shape[1]
        picture = cv2.resize(picture, (_PANEL, round(scale * picture.shape[0])), interpolation=cv2.INTER_AREA)
        shown = dict(sorted(self.road_users.items(), key=lambda one: one[1][0].captured - one[1][-1].captured)[:_SHOWN])
        for number, moments in shown.items():
            _draw_trail(picture, [moment.center for moment in moments], scale, (0, 0), _color(number))
        for track in self.tracks:
            left, bottom = _draw_box(picture, track, scale, (0, 0))
            _write(picture, str(track.id), (left, bottom + 14), 0.5, _color(track.id))
        _write(picture, f"{name}  {clock(self.captured)}", (10, 24), 0.6, (255, 255, 255))
        rows = [picture]
        for number, moments in sorted(shown.items()):
            text = f"road user {number}: {clock(moments[0].captured)} to {clock(moments[-1].captured)}"
            heading = np.full((30, _PANEL, 3), _PAPER, np.uint8)
            cv2.circle(heading, (8, 16), 7, _color(number), cv2.FILLED, cv2.LINE_AA)
            _write(heading, text, (24, 21), 0.5)
            rows += [heading, _row(moments)]
        return np.vstack(rows)


class Results:
    """Collects the tracks of all cameras and writes them to a folder."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._cameras: dict[str, _Camera] = {}
        out.mkdir(parents=True, exist_ok=True)

    def add(self, frame: Frame, tracks: list[Track], total: int) -> None:
        """Add the next frame of a camera, its tracks, and the number of road users so far."""
        if frame.camera not in self._cameras:
            table = self._out / f"{frame.camera}.csv"
            table.write_text("time,id,x,y,width,height\r\n", newline="")
            self._cameras[frame.camera] = _Camera(table, began=frame.captured)
        self._cameras[frame.camera].add(frame, tracks, total)

    @property
    def road_users(self) -> str:
        """The number of road users of each camera."""
        return ", ".join(f"{name} {camera.total}" for name, camera in sorted(self._cameras.items())) or "none"

    def write(self, title: str, facts: list[tuple[str, str]]) -> Path:
        """Write the picture; ``facts`` are names and values for its heading.

        Raises:
            FootageError: there are no frames, or the file cannot be written.
        """
        if not self._cameras:
            raise FootageError("No frame reached the sink, so there is no picture to draw.")
        began = datetime.fromtimestamp(min(camera.began for camera in self._cameras.values()), UTC)
        ended = max(camera.ended for camera in self._cameras.values())
        captured = f"{began:%Y-%m-%d} {clock(began.timestamp())} to {clock(ended)}"
        facts = [*facts, ("footage", captured if began.year > 1970 else f"{clock(ended)} long")]
        panels = [camera.draw(name) for name, camera in sorted(self._cameras.items())]
        rows = [panels[i : i + _COLUMNS] for i in range(0, len(panels), _COLUMNS)]
        width = _MARGIN + len(rows[0]) * (_PANEL + _MARGIN)
        sheet = [_head(width, title, facts), *(_side_by_side(row, width) for row in rows)]
        path = self._out / "summary.png"
        if not cv2.imwrite(str(path), np.vstack(sheet)):
            raise FootageError(f"{path} cannot be written; check that the folder is writable.")
        return path


def clock(captured: float) -> str:
    """Return the time of day in UTC, to a tenth of a second."""
    return datetime.fromtimestamp(round(captured, 1), UTC).strftime("%H:%M:%S.%f")[:-5]


def _head(width: int, title: str, facts: list[tuple[str, str]]) -> MatLike:
    head = np.full((56 + 24 * -(-len(facts) // 2), width, 3), _PAPER, np.uint8)
    _write(head, title, (_MARGIN, 36), 0.8)
    for i, (name, value) in enumerate(facts):
        x, y = _MARGIN + i % 2 * (width // 2), 66 + 24 * (i // 2)
        _write(head, name, (x, y), 0.5)
        _write(head, value, (x + 170, y), 0.5)
    return head


def _side_by_side(panels: list[MatLike], width: int) -> MatLike:
    row = np.full((max(len(panel) for panel in panels) + _MARGIN, width, 3), _PAPER, np.uint8)
    for i, panel in enumerate(panels):
        x = _MARGIN + i * (_PANEL + _MARGIN)
        row[: len(panel), x : x + _PANEL] = panel
    return row


def _row(moments: list[_Moment]) -> MatLike:
    row = np.full((_TILE + 8, _PANEL, 3), _PAPER, np.uint8)
    chosen = sorted({round(i * (len(moments) - 1) / (_TILES - 1)) for i in range(_TILES)})
    for i, index in enumerate(chosen):
        row[:_TILE, i * (_TILE + 8) : i * (_TILE + 8) + _TILE] = moments[index].tile
    return row


def _tile(picture: MatLike, track: Track, centers: list[tuple[float, float]], captured: float) -> MatLike:
    """Return the enlarged surroundings of a road user with its box and trail."""
    side = round(max(_ZOOM * max(track.width, track.height), 40))
    height, width = picture.shape[:2]
    x, y = (round(middle - side / 2) for middle in np.clip(track.center, 0, (width, height)))
    padded = cv2.copyMakeBorder(picture, side, side, side, side, cv2.BORDER_REPLICATE)
    tile = padded[y + side : y + 2 * side, x + side : x + 2 * side]
    tile = cv2.resize(tile, (_TILE, _TILE), interpolation=cv2.INTER_CUBIC)
    _draw_trail(tile, centers, _TILE / side, (x, y), _color(track.id))
    _draw_box(tile, track, _TILE / side, (x, y))
    cv2.rectangle(tile, (0, _TILE - 18), (_TILE, _TILE), _PAPER, cv2.FILLED)
    _write(tile, clock(captured), (6, _TILE - 5), 0.42)
    return tile


def _draw_trail(
    picture: MatLike,
    centers: list[tuple[float, float]],
    scale: float,
    origin: tuple[int, int],
    ink: tuple[int, int, int],
) -> None:
    points = np.round((np.array(centers) - origin) * scale).astype(np.int32)
    cv2.polylines(picture, [points], False, ink, 1, cv2.LINE_AA)


def _draw_box(picture: MatLike, track: Track, scale: float, origin: tuple[int, int]) -> tuple[int, int]:
    """Draw a box and return its lower left corner."""
    left, top = round((track.x - origin[0]) * scale) - 2, round((track.y - origin[1]) * scale) - 2
    right, bottom = left + round(track.width * scale) + 4, top + round(track.height * scale) + 4
    cv2.rectangle(picture, (left, top), (right, bottom), _color(track.id), 1, cv2.LINE_AA)
    return left, bottom


def _color(number: int) -> tuple[int, int, int]:
    return _COLORS[number % len(_COLORS)]


def _write(picture: MatLike, text: str, at: tuple[int, int], size: float, ink: tuple[int, int, int] = _INK) -> None:
    cv2.putText(picture, text, at, _FONT, size, ink, 1, cv2.LINE_AA)
