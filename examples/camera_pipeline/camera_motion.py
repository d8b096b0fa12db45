"""How far the camera itself has moved since the scene began.

A camera in a hand or on a swaying mast moves everything in the picture; without this, every edge of every
house would count as a road user. A few hundred corners of a key frame are found again in each picture, and
the shift, turn and zoom that most of them share is the camera's.
"""

import cv2
import numpy as np
from cv2.typing import MatLike

STILL = np.eye(3)
_CORNERS = 200
_WITHIN = 1.0
"""A corner agrees with a motion that brings it this close, in pixels."""
_AGREE = 0.3
"""The share of corners that must agree before a motion is believed."""
_ZOOM = 0.08


class CameraMotion:
    def __init__(self) -> None:
        self._motion: MatLike = STILL
        self._scene_from_key: MatLike = STILL
        self.reset()

    def reset(self) -> None:
        """The next picture begins a scene."""
        self._key: MatLike | None = None

    def to_scene(self, gray: MatLike) -> MatLike:
        """The 3 x 3 transform from this picture to the scene's first one."""
        if self._key is None:
            self._take_key(gray, STILL)
        elif len(self._corners) >= 12:
            motion = self._since_key(gray)
            if motion is None:
                self._take_key(gray, self._scene_now())
            else:
                self._motion = motion
        return self._scene_now()

    def _scene_now(self) -> MatLike:
        scene: MatLike = self._scene_from_key @ np.linalg.inv(self._motion)
        return scene

    def _take_key(self, gray: MatLike, scene_from_key: MatLike) -> None:
        self._key = gray
        self._motion = STILL
        self._scene_from_key = scene_from_key
        corners = cv2.goodFeaturesToTrack(gray, _CORNERS, 0.01, 8)
        found = np.empty((0, 2), np.float32) if corners is None else corners
        self._corners: MatLike = found.reshape(-1, 1, 2)

    def _since_key(self, gray: MatLike) -> MatLike | None:
        """The motion most corners share, or None when too few agree on any."""
        assert self._key is not None
        guess = _moved(self._corners, self._motion)
        at, found, _ = cv2.calcOpticalFlowPyrLK(
            self._key,
            gray,
            self._corners,
            guess,
            winSize=(15, 15),
            maxLevel=2,
            flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        )
        seen = found.reshape(-1) == 1
        before, after = self._corners[seen], at.reshape(-1, 1, 2)[seen]
        needed = max(12.0, _AGREE * len(self._corners))
        if len(before) < needed:
            return None
        as_last = int((np.linalg.norm(_moved(before, self._motion) - after, axis=2) < _WITHIN).sum())
        estimate, agreeing = cv2.estimateAffinePartial2D(
            before, after, method=cv2.RANSAC, ransacReprojThreshold=_WITHIN, maxIters=200
        )
        new = 0
        if estimate is not None and abs(np.hypot(estimate[0, 0], estimate[1, 0]) - 1) < _ZOOM:
            new = int(agreeing.sum())
        # Keeping the last motion, where it explains the picture as well, keeps a fixed camera exactly still.
        if as_last >= needed and as_last >= 0.9 * new:
            return self._motion
        if new >= needed:
            return np.vstack([estimate, STILL[2]])
        return self._motion if as_last >= needed / 2 else None


def _moved(corners: MatLike, motion: MatLike) -> MatLike:
    return cv2.transform(corners, motion[:2]).astype(np.float32)
