"""The vision of the camera pipeline without messaging: made-up scenes where every box is known, and real footage."""

from __future__ import annotations

import asyncio
import csv
import time
from functools import cache

import cv2
import numpy as np
import pytest

from examples.camera_pipeline import footage, offline, pictures
from examples.camera_pipeline.detection import Box, Detector
from examples.camera_pipeline.footage import Frame, cameras
from examples.camera_pipeline.pictures import FootageError
from examples.camera_pipeline.results import Results, clock
from examples.camera_pipeline.tracking import Track, Tracker

WIDTH, HEIGHT, RATE = 640, 360, 25


@cache
def noise(number):
    return np.random.default_rng(number).normal(0, 2, (HEIGHT, WIDTH, 3)).astype(np.int16)


def street():
    """Asphalt with a kerb, a lawn and lane markings."""
    picture = cv2.GaussianBlur(np.random.default_rng(0).normal(140, 12, (HEIGHT, WIDTH, 3)), (0, 0), 1)
    picture[:70] = (90, 130, 100)
    picture[70:76] = 210
    picture[200:204, ::3] = 230
    return np.clip(picture, 0, 255).astype(np.uint8)


def paint(picture, box, colour=(30, 40, 60)):
    x, y, width, height = (round(n) for n in box)
    picture[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = colour


def frames(boxes_of, count, rate=RATE):
    """Frames of the street with these boxes painted in."""
    ground = street()
    for i in range(count):
        picture = ground.copy()
        for box, colour in boxes_of(i):
            paint(picture, box, colour)
        picture = cv2.add(picture, noise(i % 7), dtype=cv2.CV_8U)
        yield Frame("north", i, i / rate, pictures.encode(picture, 95))


def detect(footage):
    detector = Detector()
    return [detector.detect(frame) for frame in footage]


def plain(box):
    return (box.x, box.y, box.width, box.height)


def overlap(one, two):
    wide = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    high = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
    shared = max(0, wide) * max(0, high)
    return shared / (one[2] * one[3] + two[2] * two[3] - shared)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the demo: more threads take longer for pictures of this size."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


DARK, LIGHT = (30, 40, 60), (240, 240, 240)


# --- detection


def test_a_dark_and_a_light_car_are_boxed_where_they_are():
    def cars(i):
        return [((6 * i - 80, 90, 90, 50), DARK), ((600 - 6 * i, 240, 60, 40), LIGHT)]

    for i, boxes in enumerate(detect(frames(cars, 80))):
        if i >= 20:
            assert len(boxes) == 2, (i, boxes)
            for car, _ in cars(i):
                assert max(overlap(car, plain(box)) for box in boxes) > 0.8, (i, boxes)


def test_a_still_noisy_scene_shows_nothing():
    assert not any(detect(frames(lambda _: [], 60)))


@pytest.mark.parametrize("colour", [DARK, LIGHT])
def test_a_pedestrian_who_stood_and_leaves_is_boxed_alone_and_leaves_no_ghost(colour):
    def pedestrian(i):
        return [((260 + max(0, i - 50) * 2, 100, 16, 30), colour)]

    for i, boxes in enumerate(detect(frames(pedestrian, 110))):
        if i < 50:
            assert boxes == [], i
        if i >= 58:  # has gone its own width
            assert len(boxes) == 1, (i, boxes)
            assert overlap(pedestrian(i)[0][0], plain(boxes[0])) > 0.7, (i, boxes)


def test_a_car_that_has_stopped_is_not_moving_and_is_found_again_when_it_drives_on():
    def car(i):
        return [((6 * min(i, 40) + 4 * max(0, i - 90), 150, 60, 30), LIGHT)]

    found = detect(frames(car, 130))
    assert all(len(boxes) == 1 for boxes in found[20:41])
    assert not any(found[66:91])  # a second later
    assert [overlap(car(129)[0][0], plain(box)) > 0.7 for box in found[129]] == [True]


def test_a_slow_lorry_of_one_colour_is_one_box():
    def lorry(i):
        return [((3 * i - 200, 150, 200, 60), DARK)]  # covers a place for longer than it takes to become background

    for i, boxes in enumerate(detect(frames(lorry, 130))):
        if i >= 75:
            assert [overlap(lorry(i)[0][0], plain(box)) > 0.9 for box in boxes] == [True], (i, boxes)


def test_slow_changes_of_the_light_are_no_movement():
    ground = street()
    clouds = (np.clip(ground.astype(np.int16) - i // 2, 0, 255).astype(np.uint8) for i in range(120))
    light = [Frame("north", i, i / RATE, pictures.encode(picture, 95)) for i, picture in enumerate(clouds)]
    assert not any(detect(light))


def test_boxes_are_in_pixels_of_the_frame_as_captured():
    detector = Detector()
    for i in range(30):
        picture = cv2.resize(street(), (1920, 1080))
        paint(picture, (200 + 24 * i, 450, 240, 150))
        boxes = detector.detect(Frame("north", i, i / RATE, pictures.encode(picture, 90)))
    assert [overlap((200 + 24 * 29, 450, 240, 150), plain(box)) > 0.8 for box in boxes] == [True]


def test_another_scene_starts_afresh():
    blocks = np.random.default_rng(0).uniform(20, 240, (12, 20)).astype(np.uint8)
    other = pictures.encode(cv2.merge([cv2.resize(blocks, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)] * 3), 95)
    this = pictures.encode(street(), 95)
    assert not any(detect(Frame("north", i, i / RATE, this if i < 30 else other) for i in range(60)))


def test_frames_of_another_size_start_afresh():
    detector = Detector()
    for i, size in enumerate([(640, 360), (640, 360), (320, 180), (320, 180)]):
        picture = cv2.resize(street(), size)
        assert detector.detect(Frame("north", i, i / RATE, pictures.encode(picture, 95))) == []


# --- tracking


def follow(tracker, *centers, at, size=(40, 30)):
    boxes = [Box(x - size[0] / 2, y - size[1] / 2, *size) for x, y in centers]
    return {track.id: tuple(round(n) for n in track.center) for track in tracker.update(boxes, at / 10)}


@pytest.mark.parametrize("hidden", [(), (19, 20, 21)], ids=["both seen", "neither seen while they cross"])
def test_two_that_cross_keep_their_numbers(hidden):
    tracker = Tracker()
    for i in range(41):
        centers = [] if i in hidden else [(100 + 10 * i, 180), (500 - 10 * i, 190)]
        where = follow(tracker, *centers, at=i)
        if i == 10:
            before = where
    eastward = next(number for number, center in before.items() if center == (200, 180))
    westward = next(number for number, center in before.items() if center == (400, 190))
    assert where == {eastward: (500, 180), westward: (100, 190)}
    assert tracker.total == 2


def test_a_new_object_counts_once_it_has_gone_half_its_size():
    tracker = Tracker()
    totals = []
    for i in range(6):
        follow(tracker, (100 + 8 * i, 100), at=i)
        totals.append(tracker.total)
    assert totals == [0, 0, 0, 1, 1, 1]


def test_a_traffic_light_and_noise_are_never_counted():
    tracker = Tracker()
    for i in range(60):
        assert follow(tracker, (100, 100), (400 + (0, 11, 22, 11)[i % 4], 200), at=i) == {}
    assert tracker.total == 0


def test_an_unseen_object_is_expected_for_a_moment_then_forgotten():
    tracker = Tracker()
    for i in range(10):
        follow(tracker, (100 + 10 * i, 100), at=i)
    assert follow(tracker, at=10) == {1: (200, 100)}
    assert follow(tracker, at=12) == {}
    assert follow(tracker, (240, 100), at=14) == {1: (240, 100)}
    for i in range(24, 30):  # as if it had driven on all the while
        where = follow(tracker, (100 + 10 * i, 100), at=i)
    assert list(where) == [2]


def test_an_object_of_another_size_is_another_object():
    tracker = Tracker()
    for i in range(10):
        follow(tracker, (100 + 10 * i, 100), at=i)
    assert follow(tracker, (200, 100), at=10, size=(100, 80)) == {1: (200, 100)}  # expected there, and not found
    assert follow(tracker, at=11) == {}


# --- footage

TIMES = ["2023-10-13 16-46-53-300000.jpg", "2023-10-13 16-46-53-100580.JPG", "2023-10-13 16-46-53-200000.jpeg"]


def folder(path, names):
    path.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        (path / name).write_bytes(pictures.encode(np.full((48, 64, 3), 40 * i, np.uint8)))
    return path


def video(path, rate):
    written = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (64, 48))
    for i in range(5):
        written.write(np.full((48, 64, 3), 40 * i, np.uint8))
    written.release()
    return path


@pytest.fixture
def in_michigan(monkeypatch):
    monkeypatch.setenv("TZ", "EST5EDT")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_michigan")
def test_a_folder_named_by_capture_times_plays_at_them(tmp_path):
    path = folder(tmp_path / "gs ne", TIMES)
    (path / "README.md").write_text("not a frame")
    [(name, found)] = cameras(path).items()
    found = list(found)
    assert [frame.index for frame in found] == [0, 1, 2]
    assert [frame.captured for frame in found] == pytest.approx([1697215613.10058, 1697215613.2, 1697215613.3])
    assert {frame.camera for frame in found} == {name} == {"gs_ne"}  # part of a topic
    assert [frame.jpeg for frame in found] == [(path / TIMES[i]).read_bytes() for i in (1, 2, 0)]


@pytest.mark.parametrize("names", [["b.jpg", "a.jpg", "c.jpeg"], [*TIMES, "a.jpg"]])
def test_other_names_play_in_their_order_at_the_rate(tmp_path, names):
    path = folder(tmp_path / "north", names)
    found = list(cameras(path, 4)["north"])
    assert [frame.captured for frame in found] == [i / 4 for i in range(len(names))]
    assert [frame.jpeg for frame in found] == [(path / name).read_bytes() for name in sorted(names)]


def test_a_video_plays_at_its_own_rate(tmp_path):
    found = list(cameras(video(tmp_path / "north.mp4", 25), 4)["north"])
    assert [frame.captured for frame in found] == pytest.approx([i / 25 for i in range(5)], abs=1e-3)
    assert [round(pictures.decode(frame.jpeg).mean(), -1) for frame in found] == [0, 40, 80, 120, 160]


def test_the_mcity_cameras_play_at_their_capture_times():
    times = {name: [frame.captured for frame in found] for name, found in cameras().items()}
    assert {name: len(found) for name, found in times.items()} == {"ne": 60, "sw": 60}
    assert [times["ne"][i] for i in (0, 4, 59)] == pytest.approx(
        [1697215613.100580, 1697215613.488568, 1697215618.999541], abs=1e-3
    )
    assert times["sw"][44] - times["sw"][43] == pytest.approx(0.168466, abs=1e-3)  # one came late


def test_a_folder_of_folders_and_videos_has_a_camera_in_each(tmp_path):
    folder(tmp_path / "north", TIMES)
    video(tmp_path / "south.mp4", 10)
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("no camera")
    assert {name: len(list(found)) for name, found in cameras(tmp_path).items()} == {"north": 3, "south": 5}


def test_files_that_are_no_footage_are_named_beside_the_cameras(tmp_path, caplog):
    (tmp_path / "cut.mp4").write_bytes(video(tmp_path / "south.mp4", 10).read_bytes()[:200])
    assert list(cameras(tmp_path)) == ["south"]
    assert [record.getMessage() for record in caplog.records] == ["Skipped, no footage that OpenCV can read: cut.mp4"]


@pytest.mark.parametrize("what", ["missing", "empty", "text.mp4", "cut.avi", "pngs", "one.png"])
def test_what_is_no_footage_is_said_at_once(tmp_path, what):
    for name in ("empty", "pngs"):
        (tmp_path / name).mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    written = cv2.VideoWriter(str(tmp_path / "cut.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    written.release()  # opens, but has no frame
    for name in ("pngs/0.png", "pngs/1.png", "one.png"):  # each opens as a video of one frame
        cv2.imwrite(str(tmp_path / name), np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(FootageError, match=f"{what} .*video.*FRAMES="):
        cameras(tmp_path / what)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_is_above_0(tmp_path, rate):
    with pytest.raises(FootageError, match=f"RATE=10, not {rate}"):
        cameras(folder(tmp_path / "north", ["a.jpg"]), rate)


def test_a_file_that_is_no_jpeg_is_named(tmp_path):
    (tmp_path / TIMES[0]).write_bytes(b"GIF89a")
    with pytest.raises(FootageError, match=rf"{TIMES[0]} is not a JPEG \(6 bytes\)\. Remove the file\."):
        list(cameras(tmp_path)[tmp_path.name])
    (tmp_path / TIMES[0]).write_bytes(pictures.encode(street())[:10])
    with pytest.raises(FootageError, match=rf"{TIMES[0]}: 10 bytes cannot be decoded as JPEG\. Remove the file\."):
        list(cameras(tmp_path)[tmp_path.name])
    for broken in (b"", b"GIF89a", pictures.encode(street())[:10]):
        with pytest.raises(FootageError, match=f"{len(broken)} bytes"):
            pictures.decode(broken)


async def test_frames_are_paced_by_their_capture_times(tmp_path, msight_simulation):
    clock = asyncio.get_running_loop().time
    due = [(frame, clock()) async for frame in footage.paced(_only(folder(tmp_path, TIMES)))]
    first, began = due[0]
    assert [frame.index for frame, _ in due] == [0, 1, 2]
    assert [at - began for _, at in due] == pytest.approx(
        [frame.captured - first.captured for frame, _ in due], abs=1e-4
    )


def _only(path):
    [found] = cameras(path).values()
    return found


# --- results


def seen(index, *tracks):
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    return Frame("north", index, 1697215613.0 + index / 10, pictures.encode(picture)), list(tracks), len(tracks)


def test_the_table_and_the_picture_show_each_track_where_it_was(tmp_path):
    results = Results(tmp_path / "out")
    with pytest.raises(FootageError, match="No frame"):
        results.write("empty", [])
    for i in range(300):
        results.add(*seen(i, Track(7, 100 + i, 100, 80, 50)))
    results.add(*seen(300))
    assert results.road_users == "north 0"
    picture = cv2.imread(str(results.write("300 frames", [("frames", "300")])))
    rows = list(csv.DictReader((tmp_path / "out/north.csv").read_text().splitlines()))
    assert len(rows) == 300
    assert rows[299] == {
        "time": "1697215642.900000", "id": "7", "x": "399.0", "y": "100.0", "width": "80.0", "height": "50.0",
    }  # fmt: skip
    panel = picture[picture.shape[0] - 12 - 118 - 30 - 394 :][:394, 12:712]
    panel[:40] = 128  # the name of the camera
    touched = np.argwhere((np.abs(panel.astype(int) - 128) > 40).any(axis=2))
    scale = 700 / WIDTH
    (top, left), (bottom, right) = touched.min(axis=0), touched.max(axis=0)
    assert left == pytest.approx(140 * scale, abs=3)  # where the trail begins
    assert right == pytest.approx(479 * scale, abs=4)  # where the last box ends
    assert top == pytest.approx(100 * scale, abs=5)
    assert bottom == pytest.approx(150 * scale + 16, abs=4)  # the number below the box


def test_a_road_user_that_leaves_the_frame_is_drawn_at_its_rim(tmp_path):
    results = Results(tmp_path)
    for center in (-300, 0, WIDTH, WIDTH + 300):
        results.add(*seen(center, Track(1, center, center, 20, 20)))
    assert cv2.imread(str(results.write("outside", []))) is not None


def test_the_clock_rounds():
    assert clock(1697215618.999541) == "16:46:59.0"


def test_memory_is_bounded(tmp_path):
    results = Results(tmp_path)
    for i in range(250):
        results.add(*seen(i, Track(1, 100, 100, 20, 20), Track(2 + i, 200, 100, 20, 20)))
    camera = results._cameras["north"]
    assert len(camera.road_users) <= 101
    assert max(map(len, camera.road_users.values())) <= 101
    results.write("250 frames", [])


# --- real footage: where the two are, by hand, in pixels of the shipped footage

BY_HAND = {
    "ne": {55: [(609, 517), (798, 467)], 59: [(606, 529), (795, 468)]},
    "sw": {55: [(285, 622), (129, 447)], 59: [(282, 619), (133, 456)]},
}


@pytest.mark.parametrize("name", ["ne", "sw"])
def test_each_roadside_camera_sees_one_pedestrian_and_one_car_and_nothing_else(name):
    detector, tracker = Detector(), Tracker()
    for frame in cameras()[name]:
        tracks = tracker.update(detector.detect(frame), frame.captured)
        if frame.index < 35:  # the pedestrian stands
            assert tracks == [], frame.index
        if frame.index in BY_HAND[name]:
            centers = [track.center for track in tracks]
            assert len(centers) == 2, (frame.index, centers)
            for thing in BY_HAND[name][frame.index]:
                assert any(center == pytest.approx(thing, abs=6) for center in centers), (thing, centers)
        for track in tracks:  # an own box, not one stretched over a ghost
            assert max(track.width, track.height) < 36, (frame.index, track)
    assert frame.index == 59
    assert tracker.total == 2


def test_the_offline_run_writes_tables_and_a_picture(tmp_path):
    (tmp_path / "north").mkdir()
    for frame in frames(lambda i: [((12 * i - 160, 150, 60, 40), LIGHT)], 50):
        (tmp_path / f"north/{frame.index:02}.jpg").write_bytes(frame.jpeg)
    results = offline.run(tmp_path / "north", RATE, tmp_path / "out")
    assert results.road_users == "north 1"
    assert cv2.imread(str(tmp_path / "out/summary.png")) is not None
    assert len((tmp_path / "out/north.csv").read_text().splitlines()) > 20
