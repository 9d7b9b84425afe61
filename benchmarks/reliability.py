"""How far a probability may be believed: expected calibration error, a curve that mends it, and the plot of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

_BINS = 10


@dataclass(frozen=True)
class Curve:
    """A Platt curve p = 1 / (1 + exp(-(slope z + intercept))) and what it is worth.

    Attributes:
        slope, intercept: fitted on all that was given.
        before: p of the model itself, [n].
        after: p of curves that were fitted without the fold that each value is in, [n].
        labels: [n] bool.
    """

    slope: float
    intercept: float
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    labels: NDArray[np.bool_]

    @property
    def errors(self) -> tuple[float, float]:
        """The expected calibration errors before and after, 0..1."""
        return calibration_error(self.before, self.labels), calibration_error(self.after, self.labels)


def calibration_error(p: NDArray[np.float64], labels: NDArray[np.bool_], bins: int = _BINS) -> float:
    """Expected calibration error (Naeini et al., 2015): |mean p - share of yes| over equal bins of p, weighted."""
    place = np.minimum((p * bins).astype(int), bins - 1)
    return float(
        sum(
            abs(p[place == k].mean() - labels[place == k].mean()) * (place == k).mean()
            for k in np.unique(place)
        )
    )


def fit(log_odds: Sequence[float], labels: Sequence[bool], folds: int = 5) -> Curve:
    """Fit a Platt curve on labelled log-odds; what it is worth is cross-validated.

    Raises:
        ValueError: fewer than `folds` of a class, or the log-odds say the contrary of the labels.
    """
    z, y = np.asarray(log_odds, float)[:, None], np.asarray(labels, bool)
    if min(y.sum(), (~y).sum()) < folds:
        raise ValueError(
            f"{y.sum()} windows of yes and {(~y).sum()} of no; at least {folds} of each are needed"
        )

    def curve(rows: NDArray[np.int64] | slice) -> LogisticRegression:
        # Platt's targets: not quite 0 and 1, by how many there are; as weights of both classes at each point.
        yes, no = y[rows].sum(), (~y[rows]).sum()
        towards = np.where(y[rows], (yes + 1) / (yes + 2), 1 / (no + 2))
        points = np.concatenate([z[rows], z[rows]])
        classes = np.repeat([True, False], len(towards))
        return LogisticRegression(C=1e6).fit(points, classes, np.concatenate([towards, 1 - towards]))

    after = np.empty(len(y))
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(z, y):
        after[test] = curve(train).predict_proba(z[test])[:, 1]
    whole = curve(slice(None))
    slope = float(whole.coef_[0, 0])
    if slope <= 0:
        raise ValueError(
            f"the log-odds do not tell yes from no (slope {slope:.3g}); there is nothing to calibrate"
        )
    before = 1 / (1 + np.exp(-np.clip(z[:, 0], -80, 80)))
    return Curve(slope, float(whole.intercept_[0]), before, after, y)


def plot(curve: Curve, path: Path, title: str) -> None:
    """Draw the reliability of both probabilities into an image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for p, name, error in zip(
        (curve.before, curve.after), ("as it is", "calibrated"), curve.errors, strict=True
    ):
        place = np.minimum((p * _BINS).astype(int), _BINS - 1)
        rows = [(p[place == k].mean(), curve.labels[place == k].mean()) for k in np.unique(place)]
        axes.plot(*zip(*rows, strict=True), marker="o", label=f"{name}: error {error:.3f}")
    axes.set(xlabel="p_yes", ylabel="share of yes", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(title, fontsize=8)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)
