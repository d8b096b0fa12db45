"""Runs the rounds of one fault and counts."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from tests.faults.rounds.scenes import SCENES
from tests.faults.rounds.site import open_site, verdict
from tests.support.rig import Book


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        wrong: what is not as promised.
        rounds: that were run.
        seconds: of all of them.
        slowest: seconds of the slowest round, from the fault until messages flowed.
        ledger: of all topics together.
        counted: by the scene.
    """

    wrong: list[str]
    rounds: int
    seconds: float
    slowest: float
    ledger: dict[str, Any]
    counted: dict[str, int]
    broker: str


async def run_rounds(name: str, rounds: int, seed: int, book: Book | None = None) -> Result:
    """Run ``rounds`` of the fault of this name, and wait until every message is accounted for."""
    book = book or Book()
    scene = SCENES[name]
    async with open_site(seed, book) as site:
        begun = time.monotonic()
        done, slowest, failure = 0, 0.0, []
        try:
            async with scene.enter(site) as fault:
                for _ in range(rounds):
                    began = time.monotonic()
                    await fault()
                    done += 1
                    slowest = max(slowest, time.monotonic() - began)
                    book.recovered.append(time.monotonic() - began)
        except TimeoutError as error:
            failure = [f"round {done + 1}: {error or 'TimeoutError'}"]
        return Result(
            failure + verdict(site, scene.may),
            done,
            round(time.monotonic() - begun, 1),
            round(slowest, 2),
            asdict(book.account()),
            dict(site.done),
            f"{site.broker.name} {site.broker.version}",
        )
