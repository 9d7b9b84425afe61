"""Two drawn clips, one abnormal and one normal, shared by the tests of this room."""

from pathlib import Path

import pytest

from tvau_edge.reference.samples import Sample, first_seed, samples


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which drawn clips are kept during the tests."""
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def drawn(cache: Path) -> list[Sample]:
    """The first clips of the training split: one abnormal, one normal."""
    start = first_seed("train")
    return list(samples(range(start, start + 2), cache, workers=1))
