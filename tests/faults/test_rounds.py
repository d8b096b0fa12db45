"""Faults of operators, networks and other group members on Kafka lose no acknowledged message and stop no other topic.

``python -m tests.faults.rounds --rounds 30`` runs more rounds and writes a record."""

from __future__ import annotations

import pytest

from tests.faults.rounds.run import run_rounds
from tests.faults.rounds.scenes import SCENES

ROUNDS = 5


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SCENES)
async def test_rounds_of_a_fault_lose_no_acknowledged_message(name, book):
    result = await run_rounds(name, ROUNDS, 2, book)
    assert (result.wrong, result.rounds) == ([], ROUNDS)


async def test_a_refused_batch_affects_no_other_publisher(book):
    result = await run_rounds("refused batch", 3, 3, book)
    assert (result.wrong, result.rounds) == ([], 3)
