import av
import numpy as np
import pytest
from typer.testing import CliRunner

from tvau_edge.benchmarks.check import check_dataset
from tvau_edge.benchmarks.cli import data_verb
from tvau_edge.benchmarks.dataset import read_dataset
from tvau_edge.benchmarks.description import read_description
from tvau_edge.reference.clip import FRAMES_PER_SECOND, Clip, DrawnFrame, Seen
from tvau_edge.reference.narration import QUESTIONS
from tvau_edge.reference.samples import HELD_OUT, anomalies_of
from tvau_edge.reference.storage import abnormal_tracks, write_clip, write_split


def test_a_clip_is_written_as_h264_with_its_truth_beside_it(tmp_path):
    clip, told = Clip.draw(9, ("jump",), seconds=1.0), []
    write_clip(clip, tmp_path / "clip.mp4", advance=lambda done, total: told.append((done, total)))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height) == (640, 360)
        assert stream.average_rate == FRAMES_PER_SECOND
        assert sum(1 for _ in container.decode(stream)) == len(clip) == 12
    truth = read_description(tmp_path / "clip.json")
    assert truth.anomalies == ["jump"]
    assert {thing.track: thing.appearance for thing in truth.objects}.items() <= {
        number: looks.appearance for number, looks in clip.looks.items()
    }.items()
    assert [thing.track for thing in truth.objects if thing.anomaly] == [len(clip.actors)]
    for table, frame in zip(truth.frames, clip.frames(), strict=True):
        assert [thing.track for thing in table.objects] == [thing.number for thing in frame.objects]
        assert [thing.box for thing in table.objects] == [thing.box for thing in frame.objects]
    assert told == [(k, 12) for k in range(1, 13)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.json", "clip.mp4"]


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """The first two clips of the validation split, in UBnormal's layout."""
    out = tmp_path_factory.mktemp("data") / "streets"
    list(write_split(out, "validation", range(HELD_OUT, HELD_OUT + 2), workers=1))
    return out


def test_a_split_reads_back_as_it_was_drawn(streets):
    abnormal, normal = read_dataset(streets, "validation")
    clip = Clip.draw(HELD_OUT, anomalies_of(HELD_OUT))
    assert abnormal.name == f"abnormal_scene_{clip.layout.seed}_scenario_{HELD_OUT}"
    assert abnormal.anomalies == clip.anomalies != ()
    assert (abnormal.size, abnormal.frames_per_second, len(abnormal)) == ((640, 360), 12, 96)
    drawn = list(clip.frames())
    for frame in np.flatnonzero(abnormal.labels)[::20]:
        numbers = [thing.number for thing in drawn[frame].objects if thing.state.abnormal]
        np.testing.assert_array_equal(abnormal.abnormal(int(frame)), np.isin(drawn[frame].mask, numbers))
    assert normal.name.startswith("normal_")
    assert not normal.labels.any()
    assert normal.anomalies == ()


def test_a_drawn_split_is_sound(streets):
    assert check_dataset(streets).findings == []


def test_stretches_hold_the_answers_to_all_questions(streets):
    abnormal, normal = read_dataset(streets, "validation")
    assert [(s.first, s.last) for s in abnormal.stretches] == [
        (first, first + 47) for first in range(0, 49, 12)
    ]
    for stretch in (*abnormal.stretches, *normal.stretches):
        assert set(stretch.answers) == {question.key for question in QUESTIONS}
    assert {stretch.abnormal for stretch in normal.stretches} == {False}
    assert normal.stretch(0, 47).answers["anomaly"] == ("No.",)


def test_an_interrupted_run_goes_on_and_splits_share_a_folder(streets):
    before = {path: path.stat().st_mtime_ns for path in streets.rglob("*.mp4")}
    list(write_split(streets, "validation", range(HELD_OUT, HELD_OUT + 2), workers=1))
    assert {path: path.stat().st_mtime_ns for path in streets.rglob("*.mp4")} == before
    done = CliRunner().invoke(
        data_verb, ["draw", "--out", str(streets), "--split", "test", "--seed", "7", "--count", "1"]
    )
    assert done.exit_code == 0, done.output
    assert [clip.name.split("_")[-1] for clip in read_dataset(streets, "test")] == ["1000007"]
    assert len(read_dataset(streets, "validation")) == 2
    assert len(read_dataset(streets, "all")) == 3
    for path in streets.rglob("*1000007*"):
        if path.is_file():
            path.unlink()
    (streets / "normal_test_video_names.txt").unlink()


class State:
    def __init__(self, abnormal):
        self.abnormal = abnormal


def frames(*seen):
    """Frames in which object 4 shows as (area, abnormal), or not at all."""
    return [
        DrawnFrame(None, None, () if item is None else (Seen(4, (0, 0, 9, 9), item[0], State(item[1])),))
        for item in seen
    ]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([(500, True)] * 3, [(4, 0, 2)]),
        ([(500, False)] * 3, []),
        ([(500, False), (500, True), (500, True), (500, False), (500, True)], [(4, 1, 2), (4, 4, 4)]),
        ([(500, True), None, None, (500, True)], [(4, 0, 3)]),
        ([(5, True), (500, True), (5, True), (500, True), (5, True), None], [(4, 1, 3)]),
        ([(5, True)] * 3, []),
    ],
    ids=["all", "normal", "twice", "hidden", "slivers at the ends", "too small"],
)
def test_tracks_of_what_is_abnormal(seen, expected):
    assert abnormal_tracks(frames(*seen)) == expected
