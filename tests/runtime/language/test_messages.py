import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save

from tvau_edge.runtime.errors import EvidenceError
from tvau_edge.runtime.language.messages import Reply, Request, evidence_of, halved, pack, unpack

REQUEST = Request(kind="explain", checkpoint="0" * 64)


def test_what_is_packed_comes_out_again():
    tensors = {
        "p_v": np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float16),
        "p_an": np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32),
    }
    message, found = unpack(pack(REQUEST, tensors), Request)
    assert message == REQUEST
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_half_precision_unless_it_overflows():
    assert halved(np.array([1, 65504], np.float32)).dtype == np.float16
    large = np.array([1, 70000], np.float32)
    np.testing.assert_array_equal(halved(large), large)


@given(st.binary(max_size=400))
@example(b"")
@example(b"\xff" * 16)
@example(save({}, {}))
@example(save({}, {"tvau": "[]"}))
@example(save({}, {"tvau": '{"kind": "explain"}'}))
@example(pack(Reply(ok=True)))
def test_anything_else_is_refused(raw):
    with pytest.raises(EvidenceError, match=r"not a message of tvau\.explain/1"):
        unpack(raw, Request)


@given(st.data())
def test_a_message_that_was_altered_is_read_or_refused(data):
    raw = bytearray(pack(REQUEST, {"p_v": np.ones((1, 2, 4), np.float16)}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        message, tensors = unpack(bytes(raw), Request)
    except EvidenceError:
        return
    assert isinstance(message, Request)
    assert all(np.isfinite(array).all() for array in tensors.values())


@pytest.mark.parametrize(
    "array", [np.array([np.nan], np.float16), np.array([np.inf], np.float32), np.array([1], np.int32)]
)
def test_no_finite_number(array):
    with pytest.raises(EvidenceError, match="no finite number"):
        unpack(pack(REQUEST, {"p_v": array}), Request)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({}, "p_v is missing"),
        ({"p_v": np.zeros((9, 6, 8))}, r"has shape \[9, 6, 8\]; expected \[1 to 3, 6, 8\]"),
        ({"p_v": np.zeros((0, 6, 8))}, "has shape"),
        ({"p_v": np.zeros((3, 6, 9))}, "has shape"),
        ({"p_v": np.zeros((3, 6, 8)), "p_an": np.zeros((4, 9))}, r"p_an has shape \[4, 9\]"),
        ({"p_v": np.zeros((3, 6, 8)), "p_an": np.zeros((999, 8))}, "p_an has shape"),
    ],
)
def test_evidence_of_another_model(tensors, match):
    with pytest.raises(EvidenceError, match=match):
        evidence_of(tensors, 3, 6, 8)
