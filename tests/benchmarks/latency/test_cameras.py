import time

import pytest

from tvau_edge.benchmarks.latency.cameras import drops, most_cameras
from tvau_edge.benchmarks.latency.footage import draw_footage, take_patches

DROPS = "tvau_edge.benchmarks.latency.cameras.drops"


class Slow:
    """A vision pass that takes a given time for each patch."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.seen = seconds, 0

    def run(self, batch: list) -> list:
        time.sleep(self.seconds * len(batch))
        self.seen += len(batch)
        return []


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    path = tmp_path_factory.mktemp("footage") / "drawn.mp4"
    draw_footage(path, 168, 112)
    return path


def test_a_slow_pass_drops_and_a_fast_one_takes_all(bright_bundle, footage):
    patches = take_patches(bright_bundle, footage, 2)
    fast = Slow(0.0)
    assert drops(fast, patches, 3, rate=20, seconds=0.5) == 0
    assert fast.seen == 30
    slow = Slow(0.2)
    dropped = drops(slow, patches, 3, rate=20, seconds=0.5)
    assert dropped > 0
    assert dropped + slow.seen == 30


def test_the_search_brackets_the_number(bright_bundle, footage, monkeypatch):
    monkeypatch.setattr(
        "tvau_edge.benchmarks.latency.cameras.drops", lambda vision, patches, count, *_: max(0, count - 21)
    )
    found = most_cameras(bright_bundle, footage, 1.0)
    assert found.most in (20, 21)
    assert found.rate == pytest.approx(1 / bright_bundle.manifest.geometry.seconds_per_patch)
    assert found.dropped[32] == 11


def test_a_machine_that_carries_none_says_so(bright_bundle, footage, monkeypatch):
    monkeypatch.setattr(DROPS, lambda *_: 1)
    assert most_cameras(bright_bundle, footage, 1.0).most is None
