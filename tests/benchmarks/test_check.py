import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from tvau_edge.benchmarks.check import check_dataset
from tvau_edge.benchmarks.cli import data_verb


def findings(root):
    return {finding.file.removeprefix(f"{root}/"): finding for finding in check_dataset(root).findings}


def test_a_sound_folder(squares):
    told = []
    report = check_dataset(squares, lambda done, total: told.append((done, total)))
    assert report.findings == []
    assert report.sound
    assert report.splits["test"].model_dump() == {
        "clips": 2,
        "frames": 64,
        "abnormal_clips": 1,
        "abnormal_frames": 16,
    }
    assert told == [(1, 2), (2, 2)]


def test_all_that_is_wrong_is_told_at_once(squares, write_squares):
    name = "abnormal_scene_1_scenario_1"
    folder = squares / "Scene1" / f"{name}_annotations"
    Image.new("L", (10, 10)).save(folder / f"{name}_0003_gt.png")
    for frame in (16, 17, 18):
        Image.new("L", (336, 168)).save(folder / f"{name}_{frame:04d}_gt.png")
    (folder / f"{name}_0005_gt.png").unlink()
    Image.new("L", (336, 168)).save(folder / f"{name}_0032_gt.png")
    (squares / "Scene1" / "normal_scene_1_scenario_2.mp4").write_bytes(b"")
    (squares / "normal_test_video_names.txt").open("a").write("normal_scene_9_scenario_9\n")
    (squares / "abnormal_training_video_names.txt").write_text(f"{name}\n")
    write_squares(squares, 5, 4, split="other")
    (squares / "normal_other_video_names.txt").unlink()
    problems = [f"{finding.file}: {finding.problem}" for finding in check_dataset(squares).findings]
    for part in (
        "_0003_gt.png: is 10x10, its video 336x168",
        "has no mask of 1 of 32 frames: 5",
        "has masks beyond the video's 32 frames: 32",
        "do not show object 3 in 3 of the 16 frames of its track: 16 to 18",
        "normal_scene_1_scenario_2.mp4: is empty (0 bytes)",
        "the clip normal_scene_9_scenario_9 of the test split is not in any Scene folder",
        f"the clip {name} is listed more than once: train, test",
        "1 clips are in no list of a split, such as normal_scene_1_scenario_5",
    ):
        assert any(part in problem for problem in problems), part


def test_an_object_that_never_shows_is_no_note(squares):
    tracks = next(squares.rglob("*_tracks.txt"))
    tracks.write_text("3,16,31\n7,2,5\n")
    (finding,) = check_dataset(squares).findings
    assert finding.problem == "do not show object 7 in 4 of the 4 frames of its track: 2 to 5"
    assert finding.blocking


def test_without_lists_all_clips_are_read_and_it_is_said(squares):
    for path in squares.glob("*.txt"):
        path.unlink()
    report = check_dataset(squares)
    assert report.splits["all"].clips == 2
    assert "has no lists of splits; the six lists are in" in report.findings[0].problem
    assert report.sound


@pytest.mark.parametrize("emptied", ["abnormal", "normal"])
def test_an_empty_list_is_told(squares, emptied):
    (squares / f"{emptied}_test_video_names.txt").write_text("")
    found = findings(squares)
    assert found[f"{emptied}_test_video_names.txt"].problem == "is empty"


def test_the_verb(squares, tmp_path):
    report = tmp_path / "report.json"
    run = CliRunner()
    done = run.invoke(data_verb, ["check", str(squares), "--json", str(report)])
    assert (done.exit_code, "nothing is wrong" in done.output) == (0, True)
    next(squares.rglob("*_tracks.txt")).unlink()
    done = run.invoke(data_verb, ["check", str(squares), "--json", str(report)])
    assert done.exit_code == 1
    assert "is absent: an abnormal clip needs its tracks" in " ".join(done.output.split())
    assert json.loads(report.read_text())["findings"][0]["blocking"] is True
