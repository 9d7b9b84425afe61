"""Calibrate p_yes on drawn clips that nobody trained on: `python -m tvau_edge.reference.calibrate`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tvau_edge.benchmarks.reliability import fit, plot
from tvau_edge.devices.errors import TvauError
from tvau_edge.reference.samples import first_seed
from tvau_edge.reference.windows import seen_windows, speaking
from tvau_edge.runtime.language.calibration import YesCalibration
from tvau_edge.runtime.language.dialogue import Dialogue, context_needed
from tvau_edge.runtime.language.llama import LanguageModel

console = Console(stderr=True)


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    out: Annotated[Path, typer.Option(help="File for language.calibration.")] = Path("calibration.json"),
    picture: Annotated[
        Path | None, typer.Option("--plot", help="Draw the reliability into this .png.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation, test or familiar.")] = "validation",
    count: Annotated[int, typer.Option(min=10, help="Clips; every second one is normal.")] = 80,
    kind: Annotated[str | None, typer.Option("--type", help="GGUF type; none: the first.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder of drawn clips.")] = Path("build/reference/clips"),
) -> None:
    """Fit a curve on the log-odds of yes, and write it."""
    start, (opened, language, file) = first_seed(split), speaking(bundle, kind)
    manifest = opened.manifest
    seeds = range(start, start + count)
    context = context_needed(language, manifest.geometry, manifest.base_tokens)
    odds, labels = [], []
    only = language.model_copy(
        update={"questions": [question for question in language.questions if question.key == "anomaly"]}
    )
    with LanguageModel(opened.file(file.file), context=context) as model:
        dialogue = Dialogue(model, only, manifest.geometry)
        for window in seen_windows(opened, seeds, cache):
            odds.append(dialogue.run(window.p_v, window.p_an).log_odds)
            labels.append(window.abnormal)
        dialogue.close()
    try:
        curve = fit(odds, labels)
    except ValueError as error:
        raise TvauError(f"{bundle} cannot be calibrated on these clips: {error}") from error
    before, after = curve.errors
    data = f"drawn clips, seeds {seeds[0]} to {seeds[-1]}"
    calibration = YesCalibration(
        slope=curve.slope,
        intercept=curve.intercept,
        bundle=opened.sha256,
        language=file.type,
        data=data,
        windows=len(labels),
        error_before=before,
        error_after=after,
    )
    out.write_text(calibration.model_dump_json(indent=2) + "\n")
    if picture:
        plot(curve, picture, f"{manifest.name}, {file.type}: {len(labels)} windows of {data}")
    console.print(
        f"{out}: expected calibration error {before:.3f} before, {after:.3f} after (cross-validated), "
        f"{len(labels)} windows",
        highlight=False,
    )


if __name__ == "__main__":
    typer.run(main)
