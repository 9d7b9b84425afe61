import numpy as np
from PIL import Image

from tvau_edge.benchmarks.dataset import read_dataset
from tvau_edge.benchmarks.evaluation import measure
from tvau_edge.benchmarks.pictures import write_pictures
from tvau_edge.benchmarks.stages import Stages


def test_hits_misses_and_alarms(squares, bright_bundle, tmp_path):
    with Stages(bright_bundle, dialogue=False) as stages:
        records = measure(stages, read_dataset(squares)).records
    written = write_pictures(records, tmp_path / "pictures")
    assert [path.name for path in written] == ["hits.png", "misses.png", "alarms.png"]
    hits = np.asarray(Image.open(written[0])).astype(int)
    green = (abs(hits - (90, 230, 120)).max(axis=-1) < 40).sum()
    assert green > 100  # the square's frame
    assert Image.open(written[2]).width > Image.open(written[0]).width  # of two clips, not of one


def test_a_data_set_without_anomalies_has_alarms_only(tmp_path, write_squares, bright_bundle):
    write_squares(tmp_path / "data", 1, 8)
    with Stages(bright_bundle, dialogue=False) as stages:
        records = measure(stages, read_dataset(tmp_path / "data")).records
    assert [path.name for path in write_pictures(records, tmp_path / "pictures")] == ["alarms.png"]
