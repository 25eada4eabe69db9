"""Fixtures: log lines, and data sets behind a URL."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faulty_server import FaultyServer, faulty_server


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Log lines of this project, from INFO on."""
    monkeypatch.setattr(logging.getLogger("kinemae"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture
def shards(synth_shards: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic training shards, which a test may change."""
    return Path(shutil.copytree(synth_shards / "train", tmp_path / "web" / "train"))


@pytest.fixture
def server(shards: Path) -> Iterator[FaultyServer]:
    """A server with these shards at /train and configurable faults."""
    with faulty_server(shards.parent) as server:
        yield server
