"""How good a bundle is on labelled clips, measured through the runtime's own stages.

Frames are scored by the runtime's score of their temporal patch, smoothed as the runtime does by default; regions are
those that the runtime would report (`looking.detect`), which are not smoothed over time. Pixels are those of the
frames that the model looked at, at the video's size. The dialogue is held about windows that lie end to end, and its
answers are compared with what the data say of the same frames.

Two ablations ask what the parts are worth, with the same weights: *without RAE* leaves P_An out of the dialogue;
*without AHD and RAE* has no heatmap either, so that all a frame has is the language model's p_yes of its window.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from tvau_edge.benchmarks.clips import LabelledClip, Stretch
from tvau_edge.benchmarks.figures import Figures, summarize
from tvau_edge.benchmarks.frames import FrameScores
from tvau_edge.benchmarks.looking import Looked, look, windows
from tvau_edge.benchmarks.pictures import write_pictures
from tvau_edge.benchmarks.records import ClipRecord, Measured, Moment, Turn
from tvau_edge.benchmarks.regions import VideoRegions
from tvau_edge.benchmarks.stages import Stages
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.heatmap import over_frame
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.errors import LanguageModelError

Advance = Callable[[int, int], None]


def evaluate(
    bundle: Bundle,
    clips: Sequence[LabelledClip],
    *,
    backend: str = "auto",
    precision: str = "auto",
    language: str | None = None,
    dialogue: bool = True,
    ablations: bool = False,
    threads: int | None = None,
    advance: Advance | None = None,
) -> Figures:
    """Measure a bundle on labelled clips.

    Args:
        bundle: verified.
        clips: as `read_dataset` gives them.
        backend: of the vision graph, as for `Vision.open`.
        precision: of the vision graph, as for `Vision.open`.
        language: GGUF type of the language model; None takes the bundle's first.
        dialogue: ask the language model as well; without it, figures of the answers are None.
        ablations: measure also what the answers are without RAE, and without AHD and RAE.
        threads: CPU threads of each stage, as for `Stages`.
        advance: told of progress as (clips done, clips in all).

    Returns:
        Figures in percent; None where the data do not allow one.

    Raises:
        DataError: a clip is not what its ground truth says, or there are no clips.
        LanguageModelError: a dialogue is wanted and the bundle has no language model, or not its type.
        BackendError, MissingExtraError: as `Vision.open`.
    """
    with Stages(bundle, backend, precision, language, dialogue=dialogue, threads=threads) as stages:
        return summarize(measure(stages, clips, ablations=ablations, advance=advance))


def evaluate_all(
    bundles: Sequence[Bundle],
    clips: Sequence[LabelledClip],
    *,
    precisions: Sequence[str] = ("auto",),
    backend: str = "auto",
    language: str | None = None,
    dialogue: bool = True,
    ablations: bool = False,
    threads: int | None = None,
    pictures: Path | None = None,
    progress: Callable[[str], AbstractContextManager[Advance]] | None = None,
) -> list[Figures]:
    """Measure several bundles, each at several precisions, on the same clips.

    Args:
        bundles: verified.
        clips: as `read_dataset` gives them.
        precisions: of the vision graph; each is one row.
        backend: as for `evaluate`.
        language: as for `evaluate`.
        dialogue: as for `evaluate`.
        ablations: as for `evaluate`.
        threads: as for `evaluate`.
        pictures: folder for pictures of hits and misses, with a folder in it for each row if there are several.
        progress: makes what is told of progress, given the name of a row.

    Returns:
        Figures of each bundle at each precision, in this order.

    Raises:
        TvauError: as `evaluate`.
    """
    figures = []
    rows = [(bundle, precision) for bundle in bundles for precision in precisions]
    for number, (bundle, precision) in enumerate(rows):
        with Stages(bundle, backend, precision, language, dialogue=dialogue, threads=threads) as stages:
            name = f"{bundle.path} {stages.vision.file.precision}"
            with progress(name) if progress else nullcontext() as advance:
                measured = measure(stages, clips, ablations=ablations, advance=advance)
        figures.append(summarize(measured))
        if pictures:
            write_pictures(measured.records, pictures / str(number) if len(rows) > 1 else pictures)
    return figures


def measure(
    stages: Stages,
    clips: Iterable[LabelledClip],
    *,
    ablations: bool = False,
    advance: Advance | None = None,
) -> Measured:
    """Run clips through the stages of a bundle and keep what was measured of each; errors as `evaluate`."""
    if ablations and stages.dialogue is None:
        raise LanguageModelError(
            "the ablations leave parts out of the dialogue, which needs a language model: do without --ablations, or "
            "with the dialogue"
        )
    file = stages.vision.file
    measured = Measured(
        str(stages.bundle.path), stages.bundle.sha256, f"{file.backend} {file.precision}", stages.language
    )
    clips = list(clips)
    for number, clip in enumerate(clips, 1):
        looked = look(clip, stages.vision, stages.bundle.manifest.geometry)
        _add_pixels(measured, clip, looked)
        measured.records.append(_record(clip, looked, stages, ablations))
        if advance:
            advance(number, len(clips))
    return measured


def _add_pixels(measured: Measured, clip: LabelledClip, looked: Looked) -> None:
    width, height = clip.size
    for frame, item in zip(looked.sampled, looked.evidence, strict=True):
        measured.pixels.add(clip.abnormal(int(frame)), over_frame(item.heatmap, width, height))


def _record(clip: LabelledClip, looked: Looked, stages: Stages, ablations: bool) -> ClipRecord:
    scores, threshold = looked.scores, stages.bundle.manifest.thresholds.close
    turns: list[Turn] = []
    without: list[Turn] = []
    blind = np.zeros(len(clip))
    if stages.dialogue is not None:
        for window in windows(looked, stages.bundle.manifest.geometry.temporal_patches):
            first, last = looked.span(window[0].index, window[-1].index)
            truth = clip.stretch(first, last)
            turns.append(_ask(stages, window, truth, with_rae=True))
            if ablations:
                without.append(_ask(stages, window, truth, with_rae=False))
                blind[first:] = without[-1].p_yes or 0.0
    abnormal, normal = np.flatnonzero(clip.labels), np.flatnonzero(~clip.labels)

    def moment(frame: int) -> Moment:
        heat = looked.evidence[looked.patch_of_frame[frame]].heatmap
        return Moment(clip, int(frame), heat, float(scores[frame]), threshold)

    return ClipRecord(
        clip=clip,
        frames=FrameScores(clip.labels, scores),
        regions=VideoRegions(len(clip), clip.regions(), looked.detections(clip.size, threshold)),
        turns=tuple(turns),
        without_rae=tuple(without),
        frames_by_dialogue=FrameScores(clip.labels, blind) if without else None,
        best=moment(abnormal[scores[abnormal].argmax()]) if abnormal.size else None,
        worst=moment(abnormal[scores[abnormal].argmin()]) if abnormal.size else None,
        alarm=moment(normal[scores[normal].argmax()]) if normal.size else None,
    )


def _ask(stages: Stages, window: Sequence[Evidence], truth: Stretch, *, with_rae: bool) -> Turn:
    assert stages.dialogue is not None
    p_an = stages.rae.run(np.stack([item.h_c for item in window])) if with_rae else None
    try:
        result = stages.dialogue.run(np.stack([item.p_v for item in window]), p_an)
    except LanguageModelError as error:
        raise LanguageModelError(f"clip {window[0].camera}: {error}") from error
    return Turn(truth, result.p_yes, result.answers)
