import json
from html.parser import HTMLParser

import pytest

from tvau_edge.benchmarks.latency.errors import BenchError
from tvau_edge.benchmarks.latency.record import Readings, Work
from tvau_edge.benchmarks.latency.report import render
from tvau_edge.benchmarks.latency.roofline import limits, reached
from tvau_edge.benchmarks.latency.statistics import Figure
from tvau_edge.benchmarks.latency.table import figure, lines, markdown, short

VISION = {"file": "vision.onnx", "group": "vision"}


@pytest.fixture
def run(draw_run, draw_row):
    product = {"stage": "limit: matrix product", "scenario": None, "facts": {"operations": 1e9}}
    memory = {"stage": "limit: memory", "variant": "read", "scenario": None}
    return draw_run(
        [
            draw_row(20, ours=True, variant="onnxruntime int8", file="vision.int8.onnx", group="vision"),
            draw_row(50, seed=1, **VISION),
            draw_row(400, seed=2, samples=8, variant="onnxruntime fp32", file="vision.onnx") .model_copy(
                update={"scenario": "MultiStream"}
            ),
            draw_row(4, rounds=0, variant="openvino bf16", missing="this CPU does not compute in bfloat16"),
            draw_row(10, noise=1e-6, variant="onnxruntime fp32", **product),  # 100 GOP/s
            draw_row(2.5, noise=1e-6, variant="openvino int8", **product),  # 400 GOP/s
            draw_row(100, noise=1e-6, facts={"bytes": 1e9, "cache": 1e6}, **memory),  # 10 GB/s
        ],
        work={
            "vision.onnx": Work(operations={"fp32": 2.5e9}, weights=10**7, least=10**7, most=10**9),
            "vision.int8.onnx": Work(operations={"int8": 2e9, "fp32": 0.5e9}, weights=10**7, least=10**7, most=10**9),
        },
    )  # fmt: skip


def test_limits_are_the_best_back_end_of_each_precision(run):
    found = limits(run)
    assert found.peaks == pytest.approx({"fp32": 100e9, "int8": 400e9}, rel=1e-3)
    assert found.by == {"fp32": "onnxruntime", "int8": "openvino"}
    assert found.bandwidth == pytest.approx(10e9, rel=1e-3)
    assert not found.cached


def test_the_share_of_the_limit_counts_each_precision_at_its_own_peak(run):
    fp32 = reached(run, run.rows[1], limits(run))
    assert (fp32.share, fp32.bound) == (pytest.approx(0.025 / fp32.seconds, rel=1e-3), "compute")
    int8 = reached(run, run.rows[0], limits(run))
    assert int8.share == pytest.approx((2 / 400 + 0.5 / 100) / int8.seconds, rel=1e-3)
    together = reached(run, run.rows[2], limits(run))
    assert together.seconds == pytest.approx(0.05, rel=0.1)  # of one sample


def test_decoding_is_measured_by_the_bandwidth(draw_run, draw_row, run):
    row = draw_row(50, stage="answer", variant="q8_0", scenario=None, file="lvlm.gguf")
    work = {
        "lvlm.gguf": Work(operations={"weights": 8e8}, weights=4 * 10**8, least=4 * 10**8, most=4 * 10**8)
    }
    token = reached(draw_run([row], work=work), row, limits(run))
    assert token.bound == "memory"
    assert token.share == pytest.approx(0.8, rel=0.05)


def test_a_model_that_fits_into_the_caches_has_no_share_of_the_bandwidth(draw_run, draw_row, run):
    row = draw_row(50, stage="answer", variant="q8_0", scenario=None, file="lvlm.gguf")
    work = {
        "lvlm.gguf": Work(operations={"weights": 8e4}, weights=4 * 10**4, least=4 * 10**4, most=4 * 10**4)
    }
    assert reached(draw_run([row], work=work), row, limits(run)) is None


def test_the_headline_is_of_one_patch_at_a_time(draw_run, draw_row):
    rows = [
        draw_row(20 * k, noise=1e-6, samples=k, scenario=name, ours=True, group=f"vision {name}")
        for name, k in (("MultiStream", 8), ("SingleStream", 1))
    ]
    assert "20 [20, 20] ms per temporal patch" in render([draw_run(rows)])


def test_a_run_without_limits_has_no_shares(draw_run, draw_row):
    (line,) = lines(draw_run([draw_row(10, file="vision.onnx")]))
    assert line.share is None


def test_ratios_are_per_sample_and_to_ours(run):
    by_key = {line.row.key: line for line in lines(run)}
    assert by_key["vision · onnxruntime fp32 · SingleStream"].ratio.value == pytest.approx(2.5, rel=0.1)
    assert by_key["vision · onnxruntime int8 · SingleStream"].ratio is None


def test_energy_is_per_sample_and_blank_where_unknown(draw_run, draw_row):
    powered = draw_row(10, samples=8, machine=Readings(seconds=1, joules={"rapl package-0": 32.0}))
    known, unknown = lines(draw_run([powered, draw_row(10, stage="decode")]))
    assert known.joules == pytest.approx(32 / (20 * 8))
    assert unknown.joules is None


class Page(HTMLParser):
    """Collects what a page loads and whether its tags close."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.scripts = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.loads += [
            v for k, v in attributes if k in ("src", "href", "xlink:href") and not str(v).startswith("#")
        ]
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass


def test_the_page_is_whole_and_loads_nothing(run):
    page = Page()
    text = render([run])
    page.feed(text)
    assert page.open == []
    assert page.loads == []
    assert page.scripts == 0
    assert "this CPU does not compute in bfloat16" in text
    assert text.count("<svg") == 2  # distributions, roofline
    assert "mJ each" not in text  # nothing knows of energy here


def test_what_stands_in_a_run_is_text_not_markup(draw_run, draw_row):
    evil = "<script>alert(1)</script>"
    run = draw_run(
        [draw_row(1, variant=evil), draw_row(1, rounds=0, stage="x", missing=evil)], fingerprint={"cpu": evil}
    )
    assert evil not in render([run])


def test_runs_of_several_devices_stand_beside_each_other(run):
    text = render([run, run.model_copy(update={"fingerprint": {"device": "Jetson Orin Nano", "cores": 6}})])
    assert 'href="#run2"' in text
    assert "Jetson Orin Nano, 6 cores" in text


def test_random_weights_and_interruption_are_said(draw_run, draw_row, run):
    bundle = run.bundle.model_copy(update={"synthetic": True})
    text = render([draw_run([draw_row(1, synthetic=True)], bundle=bundle, interrupted=True)])
    assert "random weights" in text
    assert "was interrupted" in text
    assert "(random weights)" in markdown(draw_run([draw_row(1, synthetic=True)]))


def accuracy(path, **changes):
    table = {
        "sha256": "0" * 64,
        "vision": "onnxruntime int8",
        "detection": {"micro_auc": 91.25},
        "answers": {"yes_no": None},
    }
    path.write_text(json.dumps(table | changes))
    return path


def test_accuracy_stands_beside_the_graph_it_was_measured_of(tmp_path, run):
    text = render([run], [accuracy(tmp_path / "eval.json")])
    assert "Accuracy against latency" in text
    assert "91.2" in text
    other = accuracy(tmp_path / "other.json", sha256="1" * 64)
    assert "Accuracy against latency" not in render([run], [other])


def test_random_weights_have_no_accuracy(tmp_path, draw_run, draw_row):
    row = draw_row(20, variant="onnxruntime int8", synthetic=True)
    assert "Accuracy" not in render([draw_run([row])], [accuracy(tmp_path / "eval.json")])


def test_what_is_no_accuracy_is_told(tmp_path, run):
    (tmp_path / "eval.json").write_text('{"detection": 3}')
    with pytest.raises(BenchError, match=r"--accuracy .*eval\.json is no file of `tvau eval --json`"):
        render([run], [tmp_path / "eval.json"])


def test_markdown_has_one_line_for_each_row(run):
    table = markdown(run).splitlines()
    assert len(table) == 2 + len(run.rows)
    assert len({line.count(" | ") for line in table}) == 1
    assert "not measured: this CPU does not compute in bfloat16" in table[5]


def test_numbers_are_short_and_never_in_powers_of_ten():
    assert [short(v) for v in (0, 0.01234, 1.005, 12.34, 123.4, 1234.5)] == [
        "0",
        "0.0123",
        "1",
        "12.3",
        "123",
        "1,230",
    ]
    assert figure(Figure(12.34, 11.96, 12.81)) == "12.3 [12, 12.8]"
    assert figure(None) == ""
