import gguf
import numpy as np
import pytest

from tvau_edge.quantize.dialogues import best_source, measure, see, tell
from tvau_edge.quantize.footage import collect
from tvau_edge.quantize.gguf_types import make_types
from tvau_edge.quantize.language import quantize_gguf
from tvau_edge.quantize.work import Work
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.errors import LanguageModelError


class Told:
    def __init__(self):
        self.steps = []

    def begin(self, step):
        self.steps.append(step)

    def advance(self, done, total):
        assert done <= total


@pytest.fixture(scope="module")
def bundle(float_bundle):
    return Bundle.open(float_bundle)


@pytest.fixture(scope="module")
def footage(bundle, drawn_video):
    return collect([str(drawn_video)], bundle.manifest.geometry, 8)


@pytest.fixture(scope="module")
def made(bundle, footage, tmp_path_factory):
    work = Work(tmp_path_factory.mktemp("types") / "out", {})
    records = make_types(bundle, ("q4_k_m", "q8_0", "f16"), footage, work, Told())
    return work, {record["type"]: record for record in records}


def test_each_type_beside_its_source(made):
    _, records = made
    assert records["f16"]["divergence"] == pytest.approx(0, abs=1e-6)
    assert records["f16"]["same_choice"] == 1
    assert 0 < records["q8_0"]["divergence"] < records["q4_k_m"]["divergence"]
    assert records["f16"]["bytes"] > records["q8_0"]["bytes"] > records["q4_k_m"]["bytes"]
    for record in records.values():
        assert record["tokens"] > 20
        assert record["tokens_per_second"] > 0
        assert record["prefill_per_second"] > 0
        assert record["source"] == "f16"
    assert [records[kind]["importance"] for kind in ("q4_k_m", "q8_0", "f16")] == [True, False, False]


def test_what_is_done_is_not_done_again(made, bundle, footage):
    work, records = made
    told = Told()
    again = make_types(bundle, ("q4_k_m",), footage, work, told)
    assert again == [records["q4_k_m"]]
    assert not any("measuring" in step for step in told.steps)


def test_the_importance_matrix_is_of_what_flows_into_the_weights(made, bundle, tmp_path):
    work, _ = made
    with np.load(work.path("dialogues.npz")) as file:
        importance = {k.split("|")[1]: file[k] for k in file.files if k.startswith("importance|")}
    source = bundle.file(bundle.manifest.language.files[0].file)
    shapes = {tensor.name: tensor.shape for tensor in gguf.GGUFReader(source).tensors}
    blocks = [name for name in shapes if name.startswith("blk.") and len(shapes[name]) == 2]
    assert set(blocks) <= set(importance)
    for name, values in importance.items():
        assert len(values) == shapes[name][0]
        assert (values >= 0).all()
        assert values.any()
    # q, k and v read the same.
    np.testing.assert_allclose(
        importance["blk.0.attn_q.weight"], importance["blk.0.attn_k.weight"], rtol=1e-5
    )
    with_matrix, without = tmp_path / "with.gguf", tmp_path / "without.gguf"
    quantize_gguf(source, with_matrix, "q4_k_m", 1, importance=importance)
    quantize_gguf(source, without, "q4_k_m", 1)
    assert with_matrix.read_bytes() != without.read_bytes()


def test_a_matrix_that_does_not_fit_is_refused(bundle, tmp_path):
    source = bundle.file(bundle.manifest.language.files[0].file)
    wrong = {"blk.0.attn_q.weight": np.ones(7, np.float32)}
    with pytest.raises(LanguageModelError, match="cannot quantize"):
        quantize_gguf(source, tmp_path / "out.gguf", "q4_k_m", 1, importance=wrong)
    assert not list(tmp_path.iterdir())


def test_dialogues_hold_the_answers_places(bundle, footage):
    windows = see(bundle, footage)
    assert windows.p_v.shape == (4, 4, 8, 256)
    _, source = best_source(bundle)
    told = tell(bundle, source, windows)
    for tokens, places in zip(told.tokens, told.answers, strict=True):
        assert places == tuple(sorted(set(places)))
        assert 0 < places[0] < places[-1] < len(tokens)


def test_divergence_by_hand():
    expected = np.log(np.array([[0.5, 0.5], [0.5, 0.5]], np.float32))
    found = np.log(np.array([[0.5, 0.5], [0.25, 0.75]], np.float32))
    one = 0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75)
    measured = measure(expected, found, 1, 1)
    assert measured.divergence == pytest.approx(one / 2, rel=1e-5)
    assert measured.same_choice == 0.5
    assert measured.tokens == 2


def test_a_language_model_that_has_lost_too_much(bundle):
    files = [bundle.manifest.language.files[0].model_copy(update={"type": "q4_k_m"})]
    language = bundle.manifest.language.model_copy(update={"files": files})
    manifest = bundle.manifest.model_copy(update={"language": language})
    with pytest.raises(LanguageModelError, match="only as q4_k_m: quantizing that again would lose twice"):
        best_source(Bundle(bundle.path, manifest, bundle.sha256))
