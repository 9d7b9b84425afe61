"""Learning curves of a run of the training script, from the records that its stages leave."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

_WIDTH = 50  # steps that the line is a mean of


def draw_curves(work: Path, out: Path) -> None:
    """Draw the loss of each stage over its steps.

    Args:
        work: folder with a `<stage>.json` of each stage.
        out: PNG file.

    Raises:
        FileNotFoundError: no stage has left a record.
    """
    records = [json.loads(path.read_text()) for path in sorted(work.glob("*.json"), key=_written)]
    records = [record for record in records if "losses" in record]
    if not records:
        raise FileNotFoundError(f"{work}: no stage has left its losses here")
    figure = Figure(figsize=(3.4 * len(records), 2.8))
    axes = figure.subplots(1, len(records), squeeze=False)
    for axis, record in zip(axes[0], records, strict=True):
        losses = np.array(record["losses"])
        axis.plot(losses, color="0.8", linewidth=0.6)
        width = min(_WIDTH, len(losses))
        mean = np.convolve(losses, np.ones(width) / width, "valid")
        axis.plot(np.arange(width - 1, len(losses)), mean, color="tab:blue", label=f"mean of {width} steps")
        axis.set(title=record["stage"], xlabel="step", yscale="log")
    axes[0, 0].set_ylabel("loss")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def _written(path: Path) -> float:
    return path.stat().st_mtime
