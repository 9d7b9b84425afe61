from dataclasses import dataclass, field

import numpy as np
import pytest

from tvau_edge.runtime.config import LanguageConfig
from tvau_edge.runtime.detection.timeline import Timeline
from tvau_edge.runtime.detection.trigger import Trigger
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.language.dialogue import DialogueResult
from tvau_edge.runtime.language.explain import Explanation
from tvau_edge.runtime.manifest import Thresholds
from tvau_edge.runtime.service.explaining import Explaining

WINDOW = 4
NOTHING = np.zeros((2, 1, 1), np.float32)


@dataclass
class Camera:
    """What the subject needs of a camera."""

    trigger: Trigger = field(
        default_factory=lambda: Trigger(Thresholds(open=0.6, close=0.4), WINDOW, close_after=2)
    )
    timeline: Timeline = field(default_factory=lambda: Timeline("door"))


class Submitted:
    """Stands for the explainer: keeps what is submitted, as indices of temporal patches."""

    def __init__(self):
        self.jobs, self.events = [], []

    def submit(self, event, window, severity, *, again=False, since=()):
        self.events.append(event)
        indices = [item.index for item in window.evidence], [item.index for item in since]
        self.jobs.append((again, *indices))


def watch(scores, **config):
    """Run scores through a trigger, as the pipeline does; the source ends after the last."""
    submitted = Submitted()
    explaining = Explaining(LanguageConfig(**config), WINDOW, submitted)
    camera = Camera()
    for index, score in enumerate(scores):
        evidence = Evidence("door", index, index, index, NOTHING, NOTHING[0], score, NOTHING[0])
        update = camera.trigger.push(evidence)
        if update is not None and update.phase == "end":
            explaining.end(camera, update)
        explaining.see(camera)
    if (update := camera.trigger.flush()) is not None:
        explaining.end(camera, update)
    return submitted.jobs


def test_an_event_is_explained_when_it_is_half_a_window_old():
    assert watch([0.1, 0.9, 0.9, 0.1, 0.1]) == [(False, [0, 0, 1, 2], [])]
    assert watch([0.9] * 3, explain_after=3) == [(False, [0, 0, 1, 2], [])]


def test_one_that_ends_before_it_is_old_enough_is_explained_at_its_end():
    assert watch([0.1, 0.9, 0.1, 0.1], explain_after=9) == [(False, [0, 1, 2, 3], [])]


def test_one_that_went_on_is_explained_again_from_the_last_window_in_which_it_shows():
    assert watch([0.9] * 6 + [0.1, 0.1]) == [(False, [0, 0, 0, 1], []), (True, [2, 3, 4, 5], [])]


def test_one_that_is_cut_off_is_explained_again_from_its_last_window():
    assert watch([0.9] * 6)[1:] == [(True, [2, 3, 4, 5], [])]


@pytest.mark.parametrize(("more", "again"), [(1, False), (2, True), (9, True)])
def test_it_takes_half_a_window_more_to_be_worthwhile(more, again):
    assert (len(watch([0.9] * (2 + more) + [0.1, 0.1])) == 2) == again
    assert len(watch([0.9] * (2 + more), explain_again_after=10)) == 1


def test_each_event_has_its_own_explanations():
    jobs = watch(([0.9] * 6 + [0.1] * 3) * 2)
    assert [again for again, *_ in jobs] == [False, True, False, True]


def test_never():
    assert len(watch([0.9] * 50, explain_again="never", explain_again_every=2)) == 1


def test_now_and_then_while_it_lasts():
    jobs = watch([0.9] * 9 + [0.1, 0.1], explain_again_every=3)
    assert [window[-1] for _, window, _ in jobs] == [1, 4, 7]
    assert [again for again, *_ in jobs] == [False, True, True]
    # While it is quiet, nothing new shows.
    assert len(watch([0.9] * 4 + [0.1, 0.9, 0.1, 0.9], explain_again_every=6)) == 2


def test_a_sequence_goes_on_from_its_newest_patch():
    jobs = watch([0.9] * 5 + [0.1, 0.1], explain_again="extend")
    assert jobs[1:] == [(True, [1, 2, 3, 4], [1, 2, 3, 4])]
    jobs = watch(
        [0.9] * 6 + [0.1, 0.9, 0.1, 0.1], explain_again="extend", explain_again_every=3, extend_to=20
    )
    assert [since for *_, since in jobs] == [[], [1, 2, 3, 4], [4, 5, 6, 7]]


@pytest.mark.parametrize(("longest", "fits"), [(10, True), (9, False), (None, False)])
def test_a_sequence_that_would_be_too_long_begins_anew(longest, fits):
    jobs = watch([0.9] * 8 + [0.1, 0.1], explain_again="extend", extend_to=longest)
    assert jobs[1] == (True, [4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7] if fits else [])


def test_a_sequence_that_began_anew_grows_again():
    jobs = watch(
        [0.9] * 15, explain_again="extend", explain_again_every=3, explain_again_after=2, extend_to=8
    )
    assert [window[-1] for _, window, _ in jobs] == [1, 4, 7, 10, 13]
    assert [since for *_, since in jobs] == [[], [1, 2, 3, 4], [], [7, 8, 9, 10], []]


def test_a_long_event_keeps_no_more_patches_than_could_be_used():
    submitted = Submitted()
    explaining = Explaining(LanguageConfig(explain_again="extend"), WINDOW, submitted)
    camera = Camera()
    for index in range(500):
        camera.trigger.push(Evidence("door", index, index, index, NOTHING, NOTHING[0], 0.9, NOTHING[0]))
        explaining.see(camera)
        (event,) = explaining._events.values() or [None]
        assert event is None or len(event.since) <= 2 * WINDOW + 1


def test_an_event_counts_once_and_its_answers_are_the_newest():
    submitted, camera = Submitted(), Camera()
    explaining = Explaining(LanguageConfig(), WINDOW, submitted)
    for index in range(3):
        camera.trigger.push(Evidence("door", index, index, index, NOTHING, NOTHING[0], 0.9, NOTHING[0]))
        explaining.see(camera)
    (event,) = submitted.events
    for place in ("left", "right"):
        explaining.explained(Explanation(event, DialogueResult({"to": place}, 0.9, (), 1, {}), {}))
    assert explaining.events == 1
    assert camera.timeline.answers == {event: {"to": "right"}}
