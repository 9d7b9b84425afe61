import numpy as np
from PIL import Image

from tvau_edge.benchmarks.dataset import read_dataset
from tvau_edge.benchmarks.evaluation import measure
from tvau_edge.benchmarks.pictures import write_contact_sheet, write_pictures
from tvau_edge.benchmarks.stages import Stages


def test_hits_misses_and_alarms(squares, bright_bundle, tmp_path):
    with Stages(bright_bundle, dialogue=False) as stages:
        records = measure(stages, read_dataset(squares)).records
    written = write_pictures(records, tmp_path / "pictures")
    assert [path.name for path in written] == ["hits.png", "misses.png", "alarms.png"]
    assert green(written[0]) > 100  # the square's frame
    assert Image.open(written[2]).width > Image.open(written[0]).width  # of two clips, not of one


def test_a_data_set_without_anomalies_has_alarms_only(tmp_path, write_squares, bright_bundle):
    write_squares(tmp_path / "data", 1, 8)
    with Stages(bright_bundle, dialogue=False) as stages:
        records = measure(stages, read_dataset(tmp_path / "data")).records
    assert [path.name for path in write_pictures(records, tmp_path / "pictures")] == ["alarms.png"]


def green(path):
    picture = np.asarray(Image.open(path)).astype(int)
    return (abs(picture - (90, 230, 120)).max(axis=-1) < 40).sum()


def test_a_contact_sheet_frames_what_is_abnormal(squares, tmp_path):
    abnormal, normal = read_dataset(squares)
    write_contact_sheet([abnormal, normal], tmp_path / "both.png")
    write_contact_sheet([normal], tmp_path / "new" / "normal.png")
    assert green(tmp_path / "both.png") > 100
    assert green(tmp_path / "new" / "normal.png") == 0
    assert Image.open(tmp_path / "both.png").width > Image.open(tmp_path / "new" / "normal.png").width


def test_a_contact_sheet_has_so_many_clips_at_most(squares, tmp_path):
    write_contact_sheet(read_dataset(squares) * 4, tmp_path / "two.png", most=2)
    write_contact_sheet(read_dataset(squares), tmp_path / "all.png")
    assert Image.open(tmp_path / "two.png").size == Image.open(tmp_path / "all.png").size
