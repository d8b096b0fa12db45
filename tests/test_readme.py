"""Every snippet of the README runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.support.brokers import make_backend

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_snippets():
    assert len(SNIPPETS) >= 3


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
@pytest.mark.parametrize("backend", ["memory", "redis", "nats", "kafka"])
def test_the_readmes_snippets_run(request, snippet, backend, monkeypatch, capsys):
    if backend == "kafka" and ".*" in snippet:
        request.applymarker(pytest.mark.xfail(reason="patterns on Kafka are not there yet", strict=True))
    for name, value in {**make_backend(backend).env, "MSIGHT_PUBSUB_BACKEND": backend}.items():
        monkeypatch.setenv(name, value)
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    if "print(" in snippet:
        assert "intersection.cam_ne 7 1" in capsys.readouterr().out


def test_the_readme_of_the_package_has_no_link_to_a_file_of_the_repository():
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"][
        "fancy-pypi-readme"
    ]
    packaged = README
    for substitution in hook["substitutions"]:
        packaged = re.sub(substitution["pattern"], substitution["replacement"], packaged)
    links = re.findall(r"\]\(([^)]*)\)", packaged)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert all((ROOT / link).exists() for link in re.findall(r"\]\((?!https?:|#)([^)]*)\)", README))
