import numpy as np
import pytest

from tvau_edge.reference.samples import first_seed, samples
from tvau_edge.reference.windows import seen_windows
from tvau_edge.runtime.bundle import Bundle


@pytest.fixture(scope="module")
def windows(shipped_bundle, cache, drawn):
    start = first_seed("train")
    return list(seen_windows(Bundle.open(shipped_bundle), range(start, start + 2), cache, per_clip=2))


def test_windows_are_seen_with_the_bundles_own_graphs(windows, shipped_bundle):
    manifest = Bundle.open(shipped_bundle).manifest
    assert windows
    for window in windows:
        assert window.p_v.shape[0] == manifest.geometry.temporal_patches
        assert window.p_v.shape[-1] == window.p_an.shape[-1]
        assert window.p_v.dtype == window.p_an.dtype == np.float32
        # As evidence travels in half precision, it is judged in half precision.
        np.testing.assert_array_equal(window.p_v, window.p_v.astype(np.float16).astype(np.float32))


def test_windows_carry_the_truth(windows, cache):
    start = first_seed("train")
    told = [w.answers for clip in samples(range(start, start + 2), cache, 1) for w in clip.windows]
    for window in windows:
        assert window.answers in told
        assert window.answers["anomaly"] == ["Yes." if window.abnormal else "No."]
