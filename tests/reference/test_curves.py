import json

import pytest

from tvau_edge.reference.curves import draw_curves


def test_the_losses_of_each_stage_are_drawn(tmp_path):
    for name in ("tower", "ahd"):
        record = {"stage": name, "losses": [1 / (1 + step) for step in range(80)]}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / "tokenizer.json").write_text("{}")  # lies in the same folder and is no record
    draw_curves(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: no stage has left its losses"):
        draw_curves(tmp_path, tmp_path / "curves.png")
