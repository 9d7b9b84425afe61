"""Fixtures that every room's tests may use."""

from pathlib import Path

import pytest

VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "videos"


@pytest.fixture(scope="session")
def real_videos() -> dict[str, Path]:
    """Real H.264 clips by name; a test that wants them is skipped where they are not at hand."""
    if not VIDEOS.is_dir():
        pytest.skip("the folder of real clips, shared/videos beside the checkout, is absent")
    return {path.stem: path for path in sorted(VIDEOS.glob("*.mp4"))}
