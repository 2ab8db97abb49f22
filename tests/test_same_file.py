"""A database file that was moved, deleted, replaced or cut off while it is in use."""

from __future__ import annotations

import os

import pytest
from flatfleet.runtime.errors import StoreGone, StoreUnavailable
from flatfleet.runtime.stores import same_file
from flatfleet.runtime.stores.same_file import SameFile


@pytest.fixture
def watched(tmp_path, monkeypatch):
    monkeypatch.setattr(same_file, "CHECK_EVERY", 0.0)
    path = tmp_path / "fleet.db"
    path.write_text("pages")
    found = SameFile(path)
    yield path, found
    found.close()
    found.close()


def test_a_file_that_was_moved_away_may_come_back(watched, tmp_path):
    path, found = watched
    path.rename(tmp_path / "away")
    with pytest.raises(StoreUnavailable, match="deleted or replaced") as raised:
        found.check()
    assert raised.type is StoreUnavailable
    assert not found.there()
    (tmp_path / "away").rename(path)
    found.check()
    assert found.there()


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="this system does not tell a deleted file from a moved one")
def test_a_file_that_was_deleted_does_not_come_back(watched):
    path, found = watched
    path.unlink()
    with pytest.raises(StoreGone, match="deleted or replaced"):
        found.check()


def test_another_file_in_its_place_is_another_store(watched, tmp_path):
    path, found = watched
    path.rename(tmp_path / "away")
    path.write_text("pages")
    with pytest.raises(StoreGone, match="deleted or replaced"):
        found.check()
    assert not found.there()


def test_a_file_that_was_cut_off_is_damaged(watched):
    path, found = watched
    path.write_text("more pages")
    found.check()
    path.write_text("page")
    with pytest.raises(StoreGone, match=r"cut off while in use \(10 bytes before, 4 now\)"):
        found.check()
