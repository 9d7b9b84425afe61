"""The line that INT8 and FP16 hold on outliers, at tiny widths; `int8_accuracy` draws it at real ones."""

import pytest

from tvau_edge.export.model.ahd import AHDConfig
from tvau_edge.export.model.vision import VisionConfig
from tvau_edge.export.synthetic import default_taps
from tvau_edge.quantize.steps import Silent
from tvau_edge.reference.int8_accuracy import drawn_feeds, measure, outlying_vision


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    config = VisionConfig(3, 64, 4, 96, 128, (2,))
    ahd = AHDConfig(len(default_taps(3)), 64, 48, 128)
    feeds = drawn_feeds(8, 56, 84, 128)
    folder = tmp_path_factory.mktemp("accuracy")
    module = outlying_vision(config, ahd, 56, 84)
    return measure(module, feeds[:-2], feeds[-2:], 0.99, ("onnx", "tensorrt"), folder, Silent())


def test_outliers_leave_fp16(found):
    assert found["peak"] > 65504
    assert [row["form"] for row in found["rows"]] == [
        "ONNX Runtime INT8",
        "TensorRT FP16",
        "TensorRT INT8",
    ]


def test_fp16_breaks_where_ranges_are_not_known_and_holds_where_they_are(found):
    (row,) = (row for row in found["rows"] if row["form"] == "TensorRT FP16")
    assert row["all"] < 0.9
    assert row["cosine"] >= 0.999
    assert 0 < row["float_products"] < row["products"] / 3


@pytest.mark.parametrize("form", ["ONNX Runtime INT8", "TensorRT INT8"])
def test_int8_agrees_at_a_share_in_float_that_is_told(found, form):
    (row,) = (row for row in found["rows"] if row["form"] == form)
    print(form, row["all"], row["cosine"], row["share"], row["left"])
    assert row["all"] < 0.99
    assert row["cosine"] >= 0.99
    # Three loud channels of 96 are nearly the whole output here, and every layer before them tells: much stays in
    # float. A form that agrees because all of it is float would be none.
    assert row["share"] < 0.9
    assert 0 < len(row["left"]) < row["products"]
    chosen = [point for point in row["curve"] if point["left"] == len(row["left"])][-1]
    assert (chosen["agreement"], chosen["cost"]) == (row["cosine"], row["share"])
