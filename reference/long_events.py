"""What to say of an event that goes on after it was explained: `python -m tvau_edge.reference.long_events`.

Drawn clips go through the runtime's own graphs and trigger. Each event is explained as `tvau run` explains it, and so
many temporal patches later again, in each of the ways of `language.explain_again`: not at all (*never*), from the
last window in which it shows (*window*), or from the sequence that the first explanation left in the cache, which the
patches since are appended to (*extend*). *Anew* is that sequence evaluated from its beginning; *closing* is the last
window of all, with the patches at its end that were quiet enough to close the event. Each answer is compared with what
is true of all that the event has shown, from the first explanation's window on.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tvau_edge.devices.errors import TvauError
from tvau_edge.reference.clip import Clip, DrawnFrame
from tvau_edge.reference.histories import judged
from tvau_edge.reference.narration import answers, is_abnormal, tracks
from tvau_edge.reference.samples import EVERY, anomalies_of, first_seed, through_h264
from tvau_edge.reference.windows import SeenWindow, look, speaking
from tvau_edge.runtime.config import TriggerConfig
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.detection.smoothing import Smoothing
from tvau_edge.runtime.detection.trigger import EventUpdate, Trigger
from tvau_edge.runtime.detection.vision import Evidence, Vision
from tvau_edge.runtime.language.dialogue import Dialogue, DialogueResult, context_needed
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.language.messages import halved
from tvau_edge.runtime.manifest import Manifest

console = Console(stderr=True)
WAYS = ("never", "window", "closing", "anew", "extend")
_LATER = (2, 4, 8, 16)  # temporal patches
_NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Drawn:
    """A clip: its seed and length, its temporal patches [K, 2, H, W, 3] uint8, its 2 K frames without pictures."""

    seed: int
    seconds: float
    patches: NDArray[np.uint8]
    frames: tuple[DrawnFrame, ...]

    def truth(self, first: int, last: int) -> SeenWindow | None:
        """What is true of the temporal patches `first` to `last`; None where nobody could tell."""
        frames = self.frames[2 * first : 2 * last + 2]
        found = tracks(_clip(self.seed, self.seconds), frames)
        abnormal, nothing = is_abnormal(found, len(frames)), np.empty(0, np.float32)
        return None if abnormal is None else SeenWindow(nothing, nothing, abnormal, answers(found))


@dataclass(frozen=True)
class LongEvent:
    """An event: how it stood when it was explained, and after each patch in which it showed since, oldest first."""

    first: EventUpdate
    later: tuple[EventUpdate, ...]
    end: EventUpdate


@dataclass(frozen=True)
class Told:
    """What was said of an event in one way, so many patches after its first explanation, and the truth."""

    way: str
    patches: int
    at_end: bool
    result: DialogueResult
    truth: SeenWindow


def _clip(seed: int, seconds: float) -> Clip:
    return Clip.draw(seed, anomalies_of(seed), seconds=seconds)


def draw(seed: int, seconds: float) -> Drawn:
    """Draw a clip, and look at it through H.264."""
    frames = list(_clip(seed, seconds).frames(every=EVERY))
    frames = frames[: len(frames) // 2 * 2]
    crf = int(np.random.default_rng(seed).integers(20, 31))
    images = through_h264([frame.image for frame in frames], crf)
    shown = tuple(replace(frame, image=_NOTHING, mask=_NOTHING) for frame in frames)
    return Drawn(seed, seconds, images.reshape(-1, 2, *images.shape[1:]), shown)


def smoothed(vision: Vision, drawn: Drawn) -> list[Evidence]:
    """What the bundle sees of a clip, scores smoothed as `tvau run` does by default."""
    smoothing = Smoothing(TriggerConfig().smooth)
    return [smoothing.apply(evidence) for evidence in look(vision, drawn.patches)]


def long_events(manifest: Manifest, evidence: Sequence[Evidence]) -> Iterator[LongEvent]:
    """The events of a clip that still show after they are explained, both as `tvau run` has it by default."""
    config, window = TriggerConfig(), manifest.geometry.temporal_patches
    trigger = Trigger(
        manifest.thresholds, window, open_after=config.open_after, close_after=config.close_after
    )
    known: list[EventUpdate] = []  # of the open event, from its first explanation on
    for item in (*evidence, None):
        update = trigger.push(item) if item is not None else trigger.flush()
        if update is not None and update.phase == "end":
            later = tuple(one for one in known[1:] if one.quiet == 0)
            if later:
                yield LongEvent(known[0], later, update)
            known = []
        elif (current := trigger.current) is not None and (known or current.patches >= window // 2):
            known.append(current)


class Explaining:
    """Explains events in each way, with one language model.

    Args:
        rae: of the bundle.
        dialogue: with room for the longest event.
        window: T'.
    """

    def __init__(self, rae: Rae, dialogue: Dialogue, window: int) -> None:
        self._rae, self._dialogue, self._window = rae, dialogue, window

    def tell(self, event: LongEvent, evidence: Sequence[Evidence], drawn: Drawn) -> Iterator[Told]:
        """Explain an event, and again after each of so many patches and at its end."""
        first = event.first.window.evidence
        for update in event.later:
            patches, at_end = update.newest.index - first[-1].index, update is event.later[-1]
            if patches not in _LATER and not at_end:
                continue
            truth = drawn.truth(first[0].index, update.newest.index)
            if truth is None:
                continue
            since = evidence[first[-1].index + 1 : update.newest.index + 1]
            said = self._ask(first, since, update.window.evidence)
            if at_end:
                said["closing"] = self._run(event.end.window.evidence)
            for way, result in said.items():
                yield Told(way, patches, at_end, result, truth)

    def _ask(
        self, first: Sequence[Evidence], since: Sequence[Evidence], newest: Sequence[Evidence]
    ) -> dict[str, DialogueResult]:
        whole = (*first, *since)
        said = {"window": self._run(newest), "anew": self._run(whole), "never": self._run(first)}
        said["extend"] = self._dialogue.run_longer(self._p_v(since), self._p_an(whole))
        return said

    def _run(self, evidence: Sequence[Evidence]) -> DialogueResult:
        return self._dialogue.run(self._p_v(evidence), self._p_an(evidence))

    def _p_v(self, evidence: Sequence[Evidence]) -> NDArray[np.float32]:
        return halved(np.stack([item.p_v for item in evidence])).astype(np.float32)

    def _p_an(self, evidence: Sequence[Evidence]) -> NDArray[np.float32]:
        h_c = np.stack([item.h_c for item in evidence])
        return halved(self._rae.run_longer(h_c, self._window)).astype(np.float32)


def figures_of(told: Sequence[Told]) -> dict[str, dict[str, float]]:
    """By way: events, how good the answers are in percent, and median milliseconds beside those of *window*."""
    found: dict[str, dict[str, float]] = {}
    for way in WAYS:
        if not (own := [one for one in told if one.way == way]):
            continue
        yes = [one.result.p_yes is not None and one.result.p_yes > 0.5 for one in own]
        found[way] = {"events": float(len(own))}
        found[way] |= judged([one.result.answers for one in own], yes, [one.truth for one in own])
        prefill = [one.result.latency_ms["prefill"] for one in own]
        whole = [sum(one.result.latency_ms.values()) for one in own]
        found[way] |= {"prefill_ms": float(np.median(prefill)), "ms": float(np.median(whole))}
    for way in found:
        for key in ("prefill", ""):
            name = f"{key}_ms".lstrip("_")
            found[way][f"times_window_{key or 'all'}"] = found[way][name] / found["window"][name]
    return found


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    split: Annotated[str, typer.Option(help="train, validation, test or familiar.")] = "familiar",
    count: Annotated[int, typer.Option(min=1, help="Clips; every second one is normal.")] = 80,
    seconds: Annotated[float, typer.Option(min=8, max=60, help="Length of each clip.")] = 16.0,
    kind: Annotated[str | None, typer.Option("--type", help="GGUF type; none: the first.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of llama.cpp.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Compare the ways to explain a long event again, on drawn clips."""
    start, (opened, language, file) = first_seed(split), speaking(bundle, kind)
    manifest, geometry = opened.manifest, opened.manifest.geometry
    longest = geometry.temporal_patches + round(seconds / geometry.seconds_per_patch)
    room = geometry.model_copy(update={"temporal_patches": longest})
    context = context_needed(language, room, manifest.base_tokens)
    vision, rae, told = Vision.open(opened), Rae.open(opened), list[Told]()
    with (
        LanguageModel(opened.file(file.file), context=context, threads=threads) as model,
        ProcessPoolExecutor(workers) as pool,
    ):
        dialogue = Dialogue(model, language, geometry)
        explaining = Explaining(rae, dialogue, geometry.temporal_patches)
        drawing = pool.map(draw, range(start, start + count), repeat(seconds))
        for drawn in track(drawing, "explaining", total=count, console=console):
            evidence = smoothed(vision, drawn)
            for event in long_events(manifest, evidence):
                told += explaining.tell(event, evidence, drawn)
        dialogue.close()
    if not told:
        raise TvauError(f"no event of {count} clips goes on after it is explained; take more, or longer ones")
    groups = {
        f"{k} patches later": [one for one in told if one.patches == k and not one.at_end] for k in _LATER
    }
    groups["at the end"] = [one for one in told if one.at_end]
    found = {name: figures_of(group) for name, group in groups.items() if group}
    Console().print(_table(f"{manifest.name} {file.type}, {count} drawn clips of {seconds:g} s", found))
    if json_file:
        json_file.write_text(json.dumps(found, indent=2) + "\n")


def _table(title: str, found: dict[str, dict[str, dict[str, float]]]) -> Table:
    table = Table(title=title)
    names = list(dict.fromkeys(name for ways in found.values() for way in ways.values() for name in way))
    for name in ("", "", *names):
        table.add_column(name, justify="right" if name else "left")
    for group, ways in found.items():
        for way, row in ways.items():
            table.add_row(group, way, *(f"{row[name]:.3g}" if name in row else "" for name in names))
    return table


if __name__ == "__main__":
    typer.run(main)
