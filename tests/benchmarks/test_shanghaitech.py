import av
import numpy as np
import pytest
from PIL import Image

from tvau_edge.benchmarks.check import check_dataset
from tvau_edge.benchmarks.dataset import read_dataset
from tvau_edge.benchmarks.errors import DataError

FRAMES, WIDTH, HEIGHT = 12, 96, 64


@pytest.fixture
def campus(tmp_path):
    """Two test videos of frames, of which one is abnormal in frames 4 to 9, and a training video."""
    root = tmp_path / "shanghaitech"
    masks = {"01_0014": np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)}
    masks["01_0015"] = masks["01_0014"].copy()
    for frame in range(4, 10):
        masks["01_0014"][frame, 10:30, 4 * frame : 4 * frame + 12] = 1
    masks["01_0014"][8:10, 40:60, 70:90] = 1
    for kind in ("frame", "pixel"):
        (root / "testing" / f"test_{kind}_mask").mkdir(parents=True)
    for name, mask in masks.items():
        folder = root / "testing" / "frames" / name
        folder.mkdir(parents=True)
        for frame in range(FRAMES):
            Image.new("RGB", (WIDTH, HEIGHT), (80, 90, 100)).save(folder / f"{frame:03d}.jpg")
        np.save(root / "testing" / "test_frame_mask" / f"{name}.npy", mask.any((1, 2)).astype(np.uint8))
        np.save(root / "testing" / "test_pixel_mask" / f"{name}.npy", mask)
    videos = root / "training" / "videos"
    videos.mkdir(parents=True)
    with av.open(str(videos / "01_001.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame(WIDTH, HEIGHT, "yuv420p")))
        container.mux(stream.encode())
    return root


def array(campus, kind, name="01_0014"):
    return campus / "testing" / f"test_{kind}_mask" / f"{name}.npy"


def test_test_videos_with_their_masks(campus):
    abnormal, normal = read_dataset(campus)
    assert (abnormal.name, abnormal.size, abnormal.frames_per_second, len(abnormal)) == (
        "01_0014",
        (WIDTH, HEIGHT),
        24,
        FRAMES,
    )
    assert np.flatnonzero(abnormal.labels).tolist() == [4, 5, 6, 7, 8, 9]
    assert abnormal.abnormal(5)[10:30, 20:32].all()
    assert abnormal.abnormal(5).sum() == 20 * 12
    assert not normal.labels.any()
    assert normal.regions().size == 0


def test_parts_that_overlap_from_frame_to_frame_are_one_track(campus):
    regions = read_dataset(campus)[0].regions()
    assert regions[regions[:, 0] == 0][:, 1:].tolist() == [
        [k, 4 * k, 10, 4 * k + 11, 29] for k in range(4, 10)
    ]
    assert regions[regions[:, 0] == 1][:, 1:].tolist() == [[k, 70, 40, 89, 59] for k in (8, 9)]


def test_training_videos_are_normal(campus):
    (clip,) = read_dataset(campus, "train")
    assert (clip.name, clip.split, len(clip)) == ("01_001", "train", 6)
    assert not clip.labels.any()
    assert [clip.split for clip in read_dataset(campus, "all")] == ["train", "test", "test"]


def test_there_is_no_validation_split(campus):
    with pytest.raises(DataError, match="no validation split; it has train and test"):
        read_dataset(campus, "validation")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: array(root, "frame").unlink(), r"test_frame_mask/01_0014.npy: is absent"),
        (lambda root: array(root, "pixel").unlink(), r"test_pixel_mask/01_0014.npy: is absent"),
        (lambda root: np.save(array(root, "frame"), np.zeros(11)), r"has shape \[11\], expected \[12\]"),
        (
            lambda root: np.save(array(root, "pixel"), np.zeros((HEIGHT, WIDTH, FRAMES), np.uint8)),
            r"has shape \[64, 96, 12\], expected \[12, 64, 96\]",
        ),
        (lambda root: np.save(array(root, "frame"), np.full(FRAMES, 7)), "other values than 0 and 1"),
        (lambda root: array(root, "pixel").write_bytes(b"\x93NUMPY\x01"), "is no .npy array of numbers"),
        (
            lambda root: np.save(array(root, "frame"), np.array([{}] * 12, dtype=object), allow_pickle=True),
            "is no .npy array of numbers",
        ),
        (
            lambda root: (root / "testing/frames/01_0014/005.jpg").unlink(),
            r"frames/01_0014: has gaps: the frames 5 are missing",
        ),
        (
            lambda root: (root / "testing/frames/01_0014/005.jpg").rename(
                root / "testing/frames/01_0014/x.jpg"
            ),
            r"names are no numbers: x.jpg",
        ),
    ],
)
def test_what_is_wrong_is_named(campus, spoil, says):
    spoil(campus)
    with pytest.raises(DataError, match=says):
        read_dataset(campus)
    assert not check_dataset(campus).sound


def test_a_sound_data_set(campus):
    report = check_dataset(campus)
    assert report.layout == "ShanghaiTech"
    assert report.findings == []
    assert {split: count.clips for split, count in report.splits.items()} == {"train": 1, "test": 2}
    assert report.splits["test"].abnormal_frames == 6


def test_what_only_a_look_at_everything_shows(campus):
    Image.new("RGB", (WIDTH, 20)).save(campus / "testing/frames/01_0015/003.jpg")
    np.save(array(campus, "frame"), np.ones(FRAMES, np.uint8))
    np.save(array(campus, "frame", "09_9999"), np.ones(FRAMES, np.uint8))
    found = {finding.file.split("testing/")[1]: finding for finding in check_dataset(campus).findings}
    assert "is 96x20, the first frame 96x64" in found["frames/01_0015/003.jpg"].problem
    assert "whether 6 frames are abnormal: 0 to 3, 10 to 11" in found["test_pixel_mask/01_0014.npy"].problem
    assert "1 videos without frames, such as 09_9999" in found["test_frame_mask"].problem
    assert not found["test_frame_mask"].blocking


def test_an_empty_split(campus):
    for path in campus.glob("testing/frames/*/*"):
        path.unlink()
    with pytest.raises(DataError, match="frames/01_0014: holds no images"):
        read_dataset(campus)
    for path in campus.glob("testing/frames/*"):
        path.rmdir()
    with pytest.raises(DataError, match="testing/frames: the test split is empty"):
        read_dataset(campus)
    assert any("is empty: the test split" in finding.problem for finding in check_dataset(campus).findings)
