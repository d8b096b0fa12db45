"""A result file is complete or absent."""

from __future__ import annotations

import json
import os
import stat
import threading

import pytest
import typer

from msight_bus.cli.result_file import json_file


def test_the_file_appears_whole_and_with_usual_permissions(tmp_path):
    path = tmp_path / "f.json"
    with json_file(path) as write:
        assert not path.exists()
        write({"cpu": "µ"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"cpu": "µ"}
    assert [found.name for found in tmp_path.iterdir()] == ["f.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_without_a_result_the_old_file_stays(tmp_path):
    path = tmp_path / "f.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), json_file(path):
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["f.json"]


def test_a_link_leads_to_its_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "f.json")
    with json_file(tmp_path / "link") as write:
        write(1)
    assert (tmp_path / "f.json").read_text() == "1\n"


def test_a_pipe_is_written_in_place(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    with json_file(path) as write:
        write(1)
    reader.join()
    assert read == ["1\n"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_folder_that_is_missing_is_refused_at_once(tmp_path):
    with pytest.raises(typer.BadParameter, match="cannot be written"):
        with json_file(tmp_path / "nowhere" / "f.json"):
            pytest.fail("not reached")
