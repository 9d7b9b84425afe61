import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tvau_edge.benchmarks.dataset import find_layout, read_dataset
from tvau_edge.benchmarks.description import read_description
from tvau_edge.benchmarks.errors import DataError
from tvau_edge.benchmarks.ubnormal_masks import read_tracks


@pytest.fixture
def folder(squares):
    return squares / "Scene1" / "abnormal_scene_1_scenario_1_annotations"


@pytest.fixture
def tracks(folder):
    return folder / "abnormal_scene_1_scenario_1_tracks.txt"


def test_a_clip_with_all_that_is_known_of_it(squares):
    abnormal, normal = read_dataset(squares)
    assert (abnormal.name, normal.name) == ("abnormal_scene_1_scenario_1", "normal_scene_1_scenario_2")
    assert (abnormal.size, abnormal.frames_per_second, len(abnormal)) == ((336, 168), 8, 32)
    assert np.flatnonzero(abnormal.labels).tolist() == list(range(16, 32))
    mask = abnormal.abnormal(20)
    assert (mask.shape, mask.sum()) == ((168, 336), 42 * 42)
    assert mask[56:98, 56:98].all()
    assert not abnormal.abnormal(15).any()
    assert abnormal.regions().tolist() == [[0, frame, 56, 56, 97, 97] for frame in range(16, 32)]
    assert not normal.labels.any()
    assert normal.regions().size == 0


def test_every_line_is_a_track_and_a_box_the_largest_part(tmp_path, write_squares, square):
    parts = square(3, 0, 7), square(3, 0, 7, corner=(200, 20), side=14), square(9, 4, 7, corner=(8, 8))
    write_squares(tmp_path, 1, 8, *parts)
    (clip,) = read_dataset(tmp_path)
    # Both lines of object 3 are tracks of their own, as UBnormal's authors count, and have the same box.
    assert clip.regions()[:3].tolist() == [
        [0, 0, 56, 56, 97, 97],
        [1, 0, 56, 56, 97, 97],
        [0, 1, 56, 56, 97, 97],
    ]
    assert (clip.regions()[:, 0] == 2).sum() == 4
    assert clip.abnormal(0).sum() == 42 * 42 + 14 * 14  # pixels are those of all parts


def test_a_hidden_object_has_no_region(squares, folder):
    Image.new("L", (336, 168)).save(folder / "abnormal_scene_1_scenario_1_0020_gt.png")
    clip = read_dataset(squares)[0]
    assert clip.labels[20]
    assert 20 not in clip.regions()[:, 1]


def test_corrected_tracks_come_first(squares, tracks):
    tracks.with_name(tracks.name.replace("_tracks", "_new_tracks")).write_text("3,24,31\n")
    assert read_dataset(squares)[0].labels.sum() == 8


def test_lists_may_lie_in_scripts(squares):
    (squares / "scripts").mkdir()
    for path in squares.glob("*.txt"):
        path.rename(squares / "scripts" / path.name)
    assert len(read_dataset(squares)) == 2


def test_the_description_of_a_drawn_clip(squares):
    name = "abnormal_scene_1_scenario_1"
    frames = [{"frame": k, "objects": []} for k in range(32)]
    table = {
        "schema": "tvau.clip/1",
        "origin": "by hand",
        "split": "test",
        "anomalies": ["square"],
        "size": [336, 168],
        "frames_per_second": 8,
        "objects": [],
        "frames": frames,
        "stretches": [{"first": 0, "last": 11, "abnormal": None, "answers": {"to": ["Up.", "Upwards."]}}],
    }
    path = squares / "Scene1" / f"{name}.json"
    path.write_text(json.dumps(table))
    clip = read_dataset(squares)[0]
    assert clip.anomalies == ("square",)
    assert clip.stretch(0, 11).answers == {"to": ("Up.", "Upwards.")}
    path.write_text(json.dumps({**table, "size": [336, 100], "frames": frames[:30]}))
    with pytest.raises(DataError, match=rf"{name}.json: its size is \(336, 100\).*and 1 more"):
        read_dataset(squares)
    path.write_text(json.dumps({**table, "anomalys": []}))
    with pytest.raises(DataError, match=rf"{name}.json: .*anomalys: unknown key; did you mean 'anomalies'"):
        read_dataset(squares)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("3,16\n", r"line 1 \(3,16\) is not object,first frame,last frame"),
        ("3,16,31\n\nthree,1,2\n", r"line 3 \(three,1,2\) is not object"),
        ("3,16.5,31\n", "line 1 .* is not object"),
        ("3,16,nan\n", "line 1 .* is not object"),
        ("3,16,32\n", "goes from frame 16 to 32, outside the video's frames 0 to 31"),
        ("3,-1,5\n", "goes from frame -1 to 5, outside"),
        ("3,20,10\n", "ends in frame 10, before its first frame 20"),
        ("0,1,5\n", "names object 0; the masks hold 1 to 255"),
        ("300,1,5\n", "names object 300"),
        ("", "names no track"),
    ],
)
def test_tracks_that_cannot_be(squares, tracks, lines, says):
    tracks.write_text(lines)
    with pytest.raises(DataError, match=rf"{tracks.name}: .*{says}"):
        read_dataset(squares)


def test_tracks_as_numpy_writes_them(squares, tracks):
    tracks.write_text("3.000e+00,1.600e+01,3.100e+01\n")
    assert read_dataset(squares)[0].labels.sum() == 16


def test_what_is_missing_is_named(squares, folder, tracks):
    tracks.unlink()
    with pytest.raises(DataError, match=rf"{tracks.name}: is absent"):
        read_dataset(squares)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(DataError, match=rf"{folder.name}: is absent: an abnormal clip needs masks"):
        read_dataset(squares)
    (squares / "Scene1" / "abnormal_scene_1_scenario_1.mp4").unlink()
    with pytest.raises(DataError, match="abnormal_scene_1_scenario_1 of the test split is not in any Scene"):
        read_dataset(squares)


def test_a_mask_missing_where_nothing_is_abnormal_is_only_told(squares, folder, caplog):
    for frame in (2, 3, 9):
        (folder / f"abnormal_scene_1_scenario_1_{frame:04d}_gt.png").unlink()
    assert len(read_dataset(squares)) == 2
    assert "has no mask of 3 of 32 frames: 2 to 3, 9" in caplog.text


def test_a_mask_missing_within_a_track_stops(squares, folder):
    (folder / "abnormal_scene_1_scenario_1_0018_gt.png").unlink()
    with pytest.raises(DataError, match="has no mask of 1 of 32 frames: 18"):
        read_dataset(squares)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: Image.new("L", (168, 336)).save(path), "is 168x336, its video 336x168"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "is no image that can be read"),
        (lambda path: path.write_text("hello"), "is no image that can be read"),
    ],
    ids=["size", "cut off", "text"],
)
def test_a_mask_that_is_none(squares, folder, write, says):
    path = folder / "abnormal_scene_1_scenario_1_0018_gt.png"
    write(path)
    with pytest.raises(DataError, match=rf"{path.name}: {says}"):
        read_dataset(squares)[0].regions()


@pytest.mark.parametrize(
    ("contents", "says"), [(b"", r"is empty \(0 bytes\)"), (b"no video" * 99, "cannot be read as a video")]
)
def test_a_video_that_is_none(squares, contents, says):
    video = squares / "Scene1" / "abnormal_scene_1_scenario_1.mp4"
    video.write_bytes(contents)
    with pytest.raises(DataError, match=rf"{video.name}: {says}"):
        read_dataset(squares)


def test_a_clip_of_any_name(squares, folder, tracks):
    name = "abnormal_scene_1_scenario_1"
    for path in (*folder.iterdir(), folder, folder.parent / f"{name}.mp4"):
        path.rename(path.with_name(path.name.replace(name, "gate")))
    (clip,) = (clip for clip in read_dataset(squares, "all") if clip.name == "gate")
    assert clip.labels.sum() == 16
    gone = folder.with_name("gate_annotations")
    gone.rename(gone.with_name("elsewhere"))
    with pytest.raises(
        DataError, match="gate_annotations: is absent: a clip whose name does not begin with normal_"
    ):
        read_dataset(squares, "all")


def test_a_normal_clip_has_no_tracks(squares):
    folder = squares / "Scene1" / "normal_scene_1_scenario_2_annotations"
    (folder / "normal_scene_1_scenario_2_tracks.txt").write_text("1,2,3\n")
    with pytest.raises(DataError, match="names tracks, though the clip's name says that it is normal"):
        read_dataset(squares)


def test_splits(squares):
    with pytest.raises(
        DataError, match=r"has no list of the train split .*_training_video_names.txt.*--split all"
    ):
        read_dataset(squares, "train")
    with pytest.raises(DataError, match="--split tset: unknown; known: train, validation, test, all"):
        read_dataset(squares, "tset")
    for path in squares.glob("*.txt"):
        path.write_text("\n")
    with pytest.raises(DataError, match="the test split is empty"):
        read_dataset(squares)
    assert len(read_dataset(squares, "all")) == 2


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(DataError, match="no such folder; `tvau data draw"):
        find_layout(tmp_path / "none")
    with pytest.raises(DataError, match="is like no data set that is known"):
        find_layout(tmp_path)


numbers = st.one_of(st.integers(-3, 40), st.floats(), st.text(max_size=4))


@given(st.lists(st.lists(numbers, max_size=4), max_size=4))
def test_whatever_stands_in_a_list_of_tracks_is_a_track_or_a_problem(tmp_path_factory, lines):
    folder = tmp_path_factory.getbasetemp()
    text = "\n".join(",".join(map(str, line)) for line in lines)
    (folder / "a_tracks.txt").write_text(text, encoding="utf-8", newline="")
    problems = []
    tracks = read_tracks(folder, "a", True, 32, problems)
    assert len(tracks) + len(problems) >= sum(bool(line.strip()) for line in text.splitlines())
    assert all(0 <= track.first <= track.last < 32 for track in tracks)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    json_values
    | st.dictionaries(st.sampled_from(["schema", "split", "size", "frames", "stretches"]), json_values)
)
def test_whatever_stands_in_a_description_is_refused_in_a_sentence(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "a.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"a.json: is no description of schema tvau.clip/1: ."):
        read_description(path)
