import numpy as np
import pytest

from tvau_edge.quantize.errors import CalibrationError
from tvau_edge.quantize.footage import LEAST, Footage, collect, expand
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.manifest import Geometry

GEOMETRY = Geometry(width=112, height=56, frames_per_second=4, temporal_patches=4)


@pytest.fixture(scope="module")
def footage(drawn_video):
    return collect([str(drawn_video)], GEOMETRY, 16)


def test_motion_stillness_day_and_night_are_all_in(footage):
    record = footage.record
    assert footage.frames.shape == (16, 2, 56, 112, 3)
    assert record["chosen"] == 16
    assert record["seen"] == 40
    # The first third moves, so there is as much of it as asked for; two thirds are still.
    assert record["with_motion"] >= 7
    assert record["still"] >= 7
    assert record["brightness_chosen"][0] < 0.15 < 0.3 < record["brightness_chosen"][2]
    assert record["sources"][0]["temporal_patches"] == 40
    assert len(record["patches"]) == 16
    assert sorted(footage.indices) == list(footage.indices)


def test_stretches_are_consecutive_and_hold_what_was_seen(footage):
    assert [len(stretch) for stretch in footage.stretches] == [32, 8]
    assert footage.starts == (0, 32)
    (source,) = (entry["source"] for entry in footage.record["sources"])
    assert [(entry["source"], entry["seconds"]) for entry in footage.record["compared"]] == [
        (source, 0.0),
        (source, 16.0),
    ]
    whole = np.concatenate(footage.stretches)
    for index, frames in zip(footage.indices, footage.frames, strict=True):
        np.testing.assert_array_equal(whole[index], frames)


def test_what_is_saved_is_read_back(footage, tmp_path):
    footage.save(tmp_path / "footage.npz")
    again = Footage.load(tmp_path / "footage.npz", footage.record)
    np.testing.assert_array_equal(again.frames, footage.frames)
    assert again.starts == footage.starts
    for one, other in zip(again.stretches, footage.stretches, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_folder_of_videos_is_each_of_them(make_video, tmp_path):
    make_video(tmp_path / "b.mp4", 3)
    (tmp_path / "night").mkdir()
    make_video(tmp_path / "night" / "a.mp4", 3)
    (tmp_path / "notes.txt").write_text("no video")
    assert [name.rsplit("/", 1)[1] for name in expand(str(tmp_path))] == ["b.mp4", "a.mp4"]
    seen = []
    found = collect([str(tmp_path)], GEOMETRY, 8, advance=lambda done, total: seen.append((done, total)))
    assert [source["temporal_patches"] for source in found.record["sources"]] == [6, 6]
    assert len(found.stretches) == 2  # none spans two videos
    assert seen[-1] == (6.0, 0.0)


def test_too_short(make_video, tmp_path):
    with pytest.raises(
        CalibrationError, match=rf"gives 2 temporal patches, at least {LEAST} .*: 4 s of video"
    ):
        collect([str(make_video(tmp_path / "short.mp4", 1))], GEOMETRY)


def test_all_black(make_video, tmp_path):
    with pytest.raises(CalibrationError, match=r"black\.mp4 is black throughout .* lens"):
        collect([str(make_video(tmp_path / "black.mp4", 6, black=True))], GEOMETRY)


def test_unreadable_and_absent(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(SourceError, match=r"broken\.mp4 cannot be opened"):
        collect([str(tmp_path / "broken.mp4")], GEOMETRY)
    with pytest.raises(SourceError, match="is absent"):
        collect([str(tmp_path / "nowhere.mp4")], GEOMETRY)


def test_another_shape_is_said_and_recorded(make_video, tmp_path, caplog):
    found = collect([str(make_video(tmp_path / "small.mp4", 5, size=(80, 80)))], GEOMETRY, 8)
    (source,) = found.record["sources"]
    assert (source["size"], source["upscaled"], source["aspect_changed_percent"]) == ("80x80", True, 50)
    messages = [record.getMessage() for record in caplog.records]
    assert any("80x80, smaller than the model's input of 112x56" in message for message in messages)
    assert any("squeezed by 50 %" in message for message in messages)


def test_a_password_stays_out_of_messages_and_record():
    with pytest.raises(SourceError) as error:
        collect(["rtsp://user:sesame@127.0.0.1:9/x"], GEOMETRY)
    assert "sesame" not in str(error.value)


def test_a_live_source_is_watched_for_the_seconds_that_were_asked_for(serve_rtsp, drawn_video):
    _, address, _ = serve_rtsp(drawn_video)
    seen = []
    found = collect([address], GEOMETRY, 8, 6, lambda done, total: seen.append((done, total)))
    assert len(found.frames) == 8
    assert found.frames.shape[1:] == (2, 56, 112, 3)
    (source,) = found.record["sources"]
    assert source["size"] == "320x160"
    # Two temporal patches a second: the source goes on for longer than it was watched, and was left.
    assert LEAST <= source["temporal_patches"] <= 20
    assert {total for _, total in seen} == {6}
