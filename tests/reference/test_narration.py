import pytest

from tvau_edge.reference.anomalies import ABNORMAL
from tvau_edge.reference.clip import Clip, cell_name
from tvau_edge.reference.narration import QUESTIONS, answers, is_abnormal, narrate, tracks

KEYS = ["anomaly", "target", "motion", "from", "to"]


@pytest.fixture(scope="module", params=["run", "crawl", "car on the footpath"])
def told(request):
    clip = Clip.draw(40, (request.param,))
    frames = list(clip.frames(every=6))
    return frames, tracks(clip, frames)


def test_the_questions_are_the_papers():
    assert [question.key for question in QUESTIONS] == KEYS


def test_the_narration_holds_the_answers(told):
    _, found = told
    text, said = narrate(found, most=len(found)), answers(found)
    assert list(said) == KEYS
    assert said["anomaly"] == ["Yes."]
    target = said["target"][0].rstrip(".")
    assert target.lower() in text.lower()
    sentence = next(part for part in text.split(". ") if part.startswith(target) and "footpath" in part)
    assert said["motion"][0].removeprefix("It is ").rstrip(".") in sentence


def test_every_wording_says_the_same(told):
    _, found = told
    for wordings in answers(found).values():
        facts = wordings[0].removeprefix("It is ").removeprefix("It comes from ").removeprefix("It goes to ")
        assert len(set(wordings)) == len(wordings)
        assert all(facts.rstrip(".").lower() in wording.lower() for wording in wordings)


def test_from_and_to_are_the_places_of_the_target(told):
    frames, found = told
    target = max((track for track in found if track.abnormal), key=lambda track: (track.abnormal, track.area))
    number = target.first.number
    things = [thing for frame in frames for thing in frame.objects if thing.number == number]
    said = answers(found)
    assert f"It comes from the {cell_name(target.first.box)}." in said["from"]
    assert f"It goes to the {cell_name(target.last.box)}." in said["to"]
    assert {target.first, target.last} <= set(things)


def test_a_normal_clip_is_answered_with_no():
    clip = Clip.draw(41)
    frames = list(clip.frames(every=12))
    found = tracks(clip, frames)
    assert is_abnormal(found, len(frames)) is False
    assert answers(found)["anomaly"] == ["No."]


def test_an_empty_street_is_told_as_such():
    assert narrate([]) == "The street is empty."
    assert answers([])["anomaly"] == ["No."]
    assert is_abnormal([], 32) is False


def test_a_short_glimpse_of_an_anomaly_is_left_open():
    clip = Clip.draw(42, ("lie",))
    frames = list(clip.frames(every=6))
    found = tracks(clip, frames)
    assert is_abnormal(found, len(frames)) is True
    assert is_abnormal(found, 100 * len(frames)) is None


def test_every_anomaly_has_words_for_the_class_prompts():
    assert all(words.split()[0] in ("a", "an", "people") for words in ABNORMAL.values())
