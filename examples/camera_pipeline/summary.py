"""The one picture that tells the whole run: six frames, every track, and the numbers."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Self

import cv2
import numpy as np
from cv2.typing import MatLike

from .pictures import FootageError
from .render import FONT, color, draw_trail
from .tracking import Tracked

_WIDTH = 1440
_COLUMNS = 3
_MOMENTS = 6
_BACKGROUND_FRAMES = 15
_BACKGROUND_WIDTH = 960
_TRACKS = 300
_TRAIL = 400
"""Positions of a track; the oldest tracks go first."""
_STILL = 8.0
"""Mean difference in levels between two pictures of a fixed camera; a moving one's median would be a blur."""
_MARGIN = 12
_TILE = (_WIDTH - (_COLUMNS + 1) * _MARGIN) // _COLUMNS
_PAPER = (250, 248, 246)
_INK = (45, 40, 36)
_ZOOM = 0.4
"""A moment shows at least this share of the frame's width."""
_WORTH_A_ZOOM = 0.8
"""Beyond this share it shows the whole frame."""


class SummaryUnwritableError(FootageError):
    """The picture could not be written where it was wanted."""


@dataclass
class _Scene:
    """What lies between two cuts."""

    pictures: list[MatLike] = field(default_factory=list)
    every: int = 1
    frames: int = 0
    trails: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    width: int = 1
    seen: int = 0
    """Tracks, each once a frame."""

    def add(self, picture: MatLike, tracked: Tracked) -> None:
        if self.frames % self.every == 0:
            height = round(_BACKGROUND_WIDTH * picture.shape[0] / picture.shape[1])
            self.pictures.append(cv2.resize(picture, (_BACKGROUND_WIDTH, height), interpolation=cv2.INTER_LINEAR))
        if len(self.pictures) > _BACKGROUND_FRAMES:
            self.pictures = self.pictures[::2]
            self.every *= 2
        self.frames += 1
        self.width = tracked.width
        for track in tracked.tracks:
            trail = self.trails.setdefault(track.id, [])
            trail.append(track.center)
            if len(trail) > _TRAIL:
                del trail[::2]
        self.seen += len(tracked.tracks)
        while len(self.trails) > _TRACKS:
            del self.trails[next(iter(self.trails))]

    def draw(self) -> MatLike:
        """All trails over what stood still."""
        background = self.pictures[-1]
        if cv2.absdiff(background, self.pictures[0]).mean() < _STILL:
            background = np.median(np.stack(self.pictures), axis=0).astype(np.uint8)
        picture = cv2.addWeighted(background, 0.75, np.full_like(background, 255), 0.25, 0)
        scale = _BACKGROUND_WIDTH / self.width
        for number, trail in self.trails.items():
            draw_trail(picture, trail, scale, color(number))
            x, y = (round(at * scale) for at in trail[-1])
            cv2.circle(picture, (x, y), 5, color(number), cv2.FILLED, cv2.LINE_AA)
            cv2.circle(picture, (x, y), 5, _INK, 1, cv2.LINE_AA)
            _text(picture, str(number), (x + 8, y - 6), 0.5)
        return picture


@dataclass(frozen=True)
class _Moment:
    index: int
    worth: tuple[int, float]
    """Tracks, and how much of the frame they cover."""
    tile: MatLike

    @classmethod
    def of(cls, annotated: MatLike, tracked: Tracked) -> Self:
        return cls(tracked.index, _worth(tracked), _tile(annotated, tracked))


class Summary:
    """Collects while the frames go by, in bounded memory."""

    def __init__(self) -> None:
        self._moments: list[_Moment] = []
        self._span = 1
        self._frames = 0
        self._scene = _Scene()
        self._best = self._scene

    def add(self, picture: MatLike, annotated: MatLike, tracked: Tracked) -> None:
        """One frame in order: as it was, and with the tracks drawn in."""
        if tracked.cut:
            self._scene = _Scene()
        self._scene.add(picture, tracked)
        if self._scene.seen >= self._best.seen:
            self._best = self._scene
        if self._frames % self._span == 0:
            self._moments.append(_Moment.of(annotated, tracked))
        elif _worth(tracked) > self._moments[-1].worth:
            self._moments[-1] = _Moment.of(annotated, tracked)
        self._frames += 1
        if len(self._moments) == 4 * _MOMENTS and self._frames % self._span == 0:
            self._moments = _spread(self._moments, 2 * _MOMENTS)
            self._span *= 2

    def write(self, path: Path, title: str, facts: list[tuple[str, str]]) -> None:
        """The picture as PNG. `facts` are names and values for the column beside the tracks."""
        if not self._moments:
            raise SummaryUnwritableError(f"no frame came, so there is nothing to draw in {path}")
        sheet = self._draw(title, facts)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".png" or not cv2.imwrite(str(path), sheet):
            raise SummaryUnwritableError(f"OpenCV could not write {path}. Its name must end in .png")

    def _draw(self, title: str, facts: list[tuple[str, str]]) -> MatLike:
        tile_height = max(moment.tile.shape[0] for moment in self._moments)
        tracks = self._best.draw()
        below = 64 + -(-_MOMENTS // _COLUMNS) * (tile_height + _MARGIN)
        height = below + max(tracks.shape[0], 40 + 30 * len(facts)) + _MARGIN
        sheet = np.full((height, _WIDTH, 3), _PAPER, np.uint8)
        _text(sheet, title, (_MARGIN, 42), 0.9)
        for i, moment in enumerate(self._chosen()):
            x = _MARGIN + i % _COLUMNS * (_TILE + _MARGIN)
            y = 64 + i // _COLUMNS * (tile_height + _MARGIN)
            sheet[y : y + moment.tile.shape[0], x : x + _TILE] = moment.tile
        sheet[below : below + tracks.shape[0], _MARGIN : _MARGIN + tracks.shape[1]] = tracks
        column = tracks.shape[1] + 3 * _MARGIN
        for i, (name, value) in enumerate(facts):
            _text(sheet, name, (column, below + 24 + 30 * i), 0.55)
            _text(sheet, value, (column + 190, below + 24 + 30 * i), 0.55)
        return sheet

    def _chosen(self) -> list[_Moment]:
        """Spread over the run, those that show road users first."""
        shown = _spread([moment for moment in self._moments if moment.worth[0]], _MOMENTS)
        empty = [moment for moment in self._moments if not moment.worth[0]]
        return sorted(shown + _spread(empty, _MOMENTS - len(shown)), key=lambda moment: moment.index)


def _spread(moments: list[_Moment], count: int) -> list[_Moment]:
    """The best of each of so many parts."""
    count = min(count, len(moments))
    ends = [len(moments) * i // count for i in range(count + 1)] if count else []
    return [max(moments[one:two], key=lambda moment: moment.worth) for one, two in pairwise(ends)]


def _worth(tracked: Tracked) -> tuple[int, float]:
    return len(tracked.tracks), sum(box.width * box.height for box in tracked.tracks)


def _tile(annotated: MatLike, tracked: Tracked) -> MatLike:
    """The frame, or, where that helps, the part of it around the tracks in the frame's proportions."""
    width, height, boxes = tracked.width, tracked.height, tracked.tracks
    share, left, top = 1.0, 0.0, 0.0
    if boxes:
        x, right = min(b.x for b in boxes), max(b.x + b.width for b in boxes)
        y, bottom = min(b.y for b in boxes), max(b.y + b.height for b in boxes)
        share = max(_ZOOM, 1.5 * (right - x) / width, 1.5 * (bottom - y) / height)
        share = share if share < _WORTH_A_ZOOM else 1.0
        left = min(max(0.0, (x + right - share * width) / 2), (1 - share) * width)
        top = min(max(0.0, (y + bottom - share * height) / 2), (1 - share) * height)
    scale = annotated.shape[1] / width
    rows = slice(int(top * scale), int((top + share * height) * scale))
    columns = slice(int(left * scale), int((left + share * width) * scale))
    size = (_TILE, round(_TILE * height / width))
    tile = cv2.resize(annotated[rows, columns], size, interpolation=cv2.INTER_AREA)
    label = f"frame {tracked.index}" + (f"  x{1 / share:.1f}" if share < 1 else "")
    (text_width, _), _ = cv2.getTextSize(label, FONT, 0.45, 1)
    cv2.rectangle(tile, (0, size[1] - 24), (text_width + 14, size[1]), _PAPER, cv2.FILLED)
    _text(tile, label, (6, size[1] - 7), 0.45)
    return tile


def _text(picture: MatLike, text: str, at: tuple[int, int], size: float) -> None:
    cv2.putText(picture, text, at, FONT, size, _INK, 1, cv2.LINE_AA)
