"""Every test that a page names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize(("page", "least"), [("PROMISES.md", 30), ("REPORTS.md", 20), ("faults/CLIENT_BUGS.md", 5)])
def test_a_page_names_tests_that_exist(page, least):
    named = re.findall(r"`(?:tests/)?([\w/]+/test_\w+\.py)(?:::(\w+))?`", (TESTS / page).read_text())
    assert len(named) >= least
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (TESTS / path).exists() or (name and f"def {name}(" not in (TESTS / path).read_text())
    ]
    assert missing == []
