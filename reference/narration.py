"""What a person would say of a stretch of a drawn clip: its narration, and the answers to the paper's questions."""

from collections.abc import Sequence
from dataclasses import dataclass

from tvau_edge.reference.actors import Looks
from tvau_edge.reference.clip import Clip, DrawnFrame, Seen, cell_name
from tvau_edge.runtime.manifest import Question

SYSTEM_PROMPT = "You watch a surveillance camera."
NARRATE = "What happens in the video?"
QUESTIONS = (
    Question(key="anomaly", text="Is there any anomaly in the video?"),
    Question(key="target", text="Which target is abnormal and what does it look like?"),
    Question(key="motion", text="What is its state of motion?"),
    Question(key="from", text="From where does it come?"),
    Question(key="to", text="To where does it go?"),
)
MIN_AREA = 90  # pixels of 640x360 under which nobody can be asked to see an object


@dataclass(frozen=True, slots=True)
class Track:
    """One object over a stretch of frames, as far as it shows."""

    looks: Looks
    first: Seen
    last: Seen
    abnormal: int  # frames in which it is abnormal
    area: int  # most pixels it shows

    @property
    def motion(self) -> str:
        """What it does at the end of the stretch."""
        return self.last.state.motion


def tracks(clip: Clip, frames: Sequence[DrawnFrame]) -> list[Track]:
    """The objects that show in `frames`, the largest first."""
    seen: dict[int, list[Seen]] = {}
    for frame in frames:
        for thing in frame.objects:
            if thing.area >= MIN_AREA:
                seen.setdefault(thing.number, []).append(thing)
    found = [
        Track(
            clip.looks[number],
            things[0],
            things[-1],
            sum(thing.state.abnormal for thing in things),
            max(thing.area for thing in things),
        )
        for number, things in seen.items()
    ]
    return sorted(found, key=lambda track: -track.area)


def narrate(found: Sequence[Track], most: int = 4) -> str:
    """Tell what the largest objects do: "A person in a red jacket and so on is walking."""
    if not found:
        return "The street is empty."
    return " ".join(f"{_sentence(_describe(track))}" for track in found[:most])


def _describe(track: Track) -> str:
    return (
        f"{track.looks.appearance} is {track.motion} "
        f"from the {cell_name(track.first.box)} to the {cell_name(track.last.box)}"
    )


def _sentence(text: str) -> str:
    return _capital(f"{text}.")


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def is_abnormal(found: Sequence[Track], frames: int) -> bool | None:
    """Whether the stretch shows an anomaly; None where one shows so briefly that nobody could tell.

    Args:
        found: its tracks.
        frames: how many frames the stretch has.
    """
    most = max((track.abnormal for track in found), default=0)
    if most == 0:
        return False
    return True if most >= 0.25 * frames else None


# What people say, in several wordings: the first is the plainest.
_NORMAL_ANSWERS = {
    "anomaly": ("No.",),
    "target": ("No target is abnormal.", "There is no abnormal target.", "Nothing is abnormal."),
    "motion": ("Everything moves normally.", "All motion is normal.", "Nothing moves abnormally."),
    "from": ("Nothing to follow.", "There is nothing to follow."),
    "to": ("Nothing to follow.", "There is nothing to follow."),
}
_ABNORMAL_ANSWERS = {
    "anomaly": ("Yes.",),
    "target": ("{target}.", "It is {target}.", "The target is {target}."),
    "motion": ("It is {motion}.", "The target is {motion}.", "It is seen {motion}."),
    "from": ("It comes from the {first}.", "From the {first}.", "It starts in the {first}."),
    "to": ("It goes to the {last}.", "To the {last}.", "It ends in the {last}."),
}


def answers(found: Sequence[Track]) -> dict[str, list[str]]:
    """Answer the paper's questions, by key of `QUESTIONS`, each in several wordings that mean the same.

    Of several anomalies the one that shows longest is told, of equals the largest.
    """
    abnormal = [track for track in found if track.abnormal]
    if not abnormal:
        return {key: list(wordings) for key, wordings in _NORMAL_ANSWERS.items()}
    track = max(abnormal, key=lambda track: (track.abnormal, track.area))
    facts = {
        "target": track.looks.appearance,
        "motion": _motion_when_abnormal(track),
        "first": cell_name(track.first.box),
        "last": cell_name(track.last.box),
    }
    return {
        key: [_capital(wording.format(**facts)) for wording in wordings]
        for key, wordings in _ABNORMAL_ANSWERS.items()
    }


def _motion_when_abnormal(track: Track) -> str:
    return track.motion if track.last.state.abnormal else track.first.state.motion
