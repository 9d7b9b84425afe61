import av
import numpy as np
import pytest

from tvau_edge.runtime.cameras.masks import PrivacyMask
from tvau_edge.runtime.cameras.source import Source

LEFT = [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)]
FORMATS = [
    "yuv420p",
    "yuvj420p",
    "yuv422p",
    "yuv444p",
    "nv12",
    "gray",
    "rgb24",
    "bgr24",
    "yuv420p10le",
    "yuyv422",
]


def picture(form="yuv420p", width=84, height=56, level=200):
    image = np.full((height, width, 3), level, np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    return frame if form == "rgb24" else frame.reformat(format=form)


def rgb(frame):
    return frame.to_ndarray(format="rgb24").astype(int)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [(84, 56), (85, 57)])
def test_what_is_masked_is_black_and_the_rest_stays(form, size):
    if form == "yuyv422" and size[0] % 2:
        pytest.skip("packed 4:2:2 has no odd widths")
    before = picture(form, *size)
    expected = rgb(before).copy()
    after = rgb(PrivacyMask([LEFT]).hide(before, "door"))
    half = size[0] // 2
    assert after[:, : half + 1].max() <= 8
    np.testing.assert_allclose(after[:, half + 4 :], expected[:, half + 4 :], atol=3)


def test_no_colour_is_left_under_a_mask():
    image = np.zeros((56, 84, 3), np.uint8)
    image[:] = (230, 20, 20)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
    after = rgb(PrivacyMask([LEFT]).hide(frame, "door"))[:, :42]
    assert after.max() <= 8


def test_another_size_or_format_fits_as_well():
    mask = PrivacyMask([LEFT])
    for form, size in [
        ("yuv420p", (84, 56)),
        ("yuv420p", (168, 112)),
        ("nv12", (168, 112)),
        ("yuv420p", (84, 56)),
    ]:
        after = rgb(mask.hide(picture(form, *size), "door"))
        assert after[:, : size[0] // 2].max() <= 8
        assert after[:, -1].min() > 150


def test_a_mask_of_everything():
    whole = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    assert rgb(PrivacyMask([whole]).hide(picture(), "door")).max() <= 8


def test_the_decoder_goes_on_as_before(tmp_path, draw_clip):
    """Pictures that refer to earlier ones are not spoilt by the mask in those."""
    clip = str(draw_clip(tmp_path / "clip.mp4", 4, (1, 2), rate=8, corner=(56, 28), size=(168, 112)))
    with Source(clip, "door") as plain, Source(clip, "door", mask=PrivacyMask([LEFT])) as masked:
        pairs = [(a.image.astype(int), b.image.astype(int)) for a, b in zip(plain, masked, strict=True)]
    assert len(pairs) == 32
    for original, hidden in pairs:
        assert hidden[:, :85].max() <= 8
        np.testing.assert_array_equal(hidden[:, 88:], original[:, 88:])


def test_everything_a_frame_gives_is_masked(tmp_path, draw_clip):
    clip = str(draw_clip(tmp_path / "clip.mp4", 1, size=(168, 112)))
    with Source(clip, "door", mask=PrivacyMask([LEFT])) as source:
        for frame in source:
            assert frame.image[:, :84].max() <= 8
            assert frame.scaled(84, 56)[:, :41].max() <= 8
            assert rgb(frame.picture)[:, :84].max() <= 8


def test_masks_lie_on_the_upright_picture(monkeypatch):
    frame = picture(width=84, height=56)
    monkeypatch.setattr("tvau_edge.runtime.cameras.frame.Frame.turns", property(lambda self: 1))
    hidden = rgb(PrivacyMask([LEFT]).hide(frame, "door"))
    upright = np.rot90(hidden, 1)  # [84, 56, 3]
    assert upright[:, :28].max() <= 8
    assert upright[:, 32:].min() > 150
