"""Every snippet of the README runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.brokers import make_backend

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_snippets():
    assert len(SNIPPETS) >= 3


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
@pytest.mark.parametrize("backend", ["memory", "redis", "nats", "kafka"])
def test_the_readmes_snippets_run(snippet, backend, monkeypatch, capsys):
    for name, value in {**make_backend(backend).env, "MSIGHT_PUBSUB_BACKEND": backend}.items():
        monkeypatch.setenv(name, value)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    if "print(" in snippet:
        assert "intersection.cam_ne 7 1" in capsys.readouterr().out
