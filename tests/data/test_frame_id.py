from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time

import pytest

from msight_bus.data import BytesData, new_frame_id
from msight_bus.data.frame_id import _FrameIds


def many(count: int = 20_000) -> list[int]:
    return [new_frame_id() for _ in range(count)]


def test_ids_are_positive_63_bit_integers_that_increase():
    ids = many()
    assert all(0 < one < 2**63 for one in ids)
    assert all(before < after for before, after in itertools.pairwise(ids))


def test_ids_stay_63_bit_until_2090(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 3_786_912_000_000_000_000)  # 2090-01-01
    assert 2**62 < _FrameIds().next() < 2**63


def test_ids_increase_when_the_clock_steps_back(monkeypatch):
    ids = _FrameIds()
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    first = ids.next()
    monkeypatch.setattr(time, "time_ns", lambda: now - 3600 * 10**9)
    assert ids.next() > first


def test_ids_follow_the_clock_across_processes(monkeypatch):
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    early = max(_FrameIds().next() for _ in range(50))
    monkeypatch.setattr(time, "time_ns", lambda: now + 3_000_000)
    assert min(_FrameIds().next() for _ in range(50)) > early


def test_threads_get_different_ids():
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(many(5_000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for ids in found for one in ids}) == 20_000


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_processes_get_different_ids():
    many(1)  # the state that each child inherits
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(many, [3_000] * 8, chunksize=1)
    own = many(3_000)
    assert len({one for ids in (*found, own) for one in ids}) == 9 * 3_000


def test_each_value_has_an_id_of_its_own():
    assert BytesData(data=b"").frame_id < BytesData(data=b"").frame_id
