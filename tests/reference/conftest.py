"""Two drawn clips, one abnormal and one normal, shared by the tests of this room."""

from pathlib import Path

import pytest

from tvau_edge.reference.samples import Sample, samples


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which drawn clips are kept during the tests."""
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def drawn(cache: Path) -> list[Sample]:
    """The clips of seeds 0, abnormal, and 1, normal."""
    return list(samples(range(2), cache, workers=1))
