import json

import av

from tvau_edge.reference.clip import FRAMES_PER_SECOND, Clip
from tvau_edge.reference.storage import write_clip


def test_a_clip_is_written_as_h264_with_its_truth_beside_it(tmp_path):
    clip, told = Clip.draw(9, "jump", seconds=1.0), []
    write_clip(clip, tmp_path / "clip.mp4", advance=lambda done, total: told.append((done, total)))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height) == (640, 360)
        assert stream.average_rate == FRAMES_PER_SECOND
        assert sum(1 for _ in container.decode(stream)) == len(clip) == 12
    truth = json.loads((tmp_path / "clip.json").read_text())
    assert truth["anomalies"] == ["jump"]
    for table, frame in zip(truth["frames"], clip.frames(), strict=True):
        assert [thing["track"] for thing in table["objects"]] == [thing.number for thing in frame.objects]
        assert [tuple(thing["box"]) for thing in table["objects"]] == [thing.box for thing in frame.objects]
    assert told == [(k, 12) for k in range(1, 13)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.json", "clip.mp4"]
