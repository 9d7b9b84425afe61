"""How far a model's own p_yes is to be trusted: a curve fitted on clips whose answers are known (Platt, 1999).

The file is made by `python -m tvau_edge.reference.calibrate` or by whoever has labelled clips; it belongs to one
bundle and one GGUF type, since quantization moves the logits.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from tvau_edge.runtime.errors import ConfigError
from tvau_edge.runtime.problems import explain

Share = Annotated[float, Field(ge=0, le=1)]
_FARTHEST = 80.0  # of a logit; beyond it, exp leaves the range of a double's use


class YesCalibration(BaseModel):
    """The curve p = 1 / (1 + exp(-(slope z + intercept))), z being the log-odds of yes against no."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    schema_: Annotated[Literal["tvau.calibration/1"], Field(alias="schema")] = "tvau.calibration/1"
    slope: PositiveFloat
    intercept: Annotated[float, Field(allow_inf_nan=False)]
    bundle: Annotated[str, Field(description="sha256 of the bundle's manifest")]
    language: Annotated[str, Field(description="GGUF type of the language model")]
    data: Annotated[str, Field(description="what it was fitted on")]
    windows: PositiveInt
    error_before: Annotated[
        Share, Field(description="expected calibration error without it, cross-validated")
    ]
    error_after: Annotated[Share, Field(description="and with it, cross-validated")]

    def apply(self, log_odds: float) -> float:
        """The calibrated probability of yes, 0..1."""
        return probability(self.slope * log_odds + self.intercept)


def probability(log_odds: float) -> float:
    """The probability, 0..1, that has these log-odds."""
    return float(1 / (1 + np.exp(-np.clip(log_odds, -_FARTHEST, _FARTHEST))))


def load_calibration(path: Path, bundle: str, language: str) -> YesCalibration:
    """Read the calibration of a bundle's language model.

    Args:
        path: a JSON file.
        bundle: sha256 of the bundle's manifest.
        language: GGUF type in use.

    Raises:
        ConfigError: it is missing, invalid, or of another model.
    """
    try:
        calibration = YesCalibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"language.calibration: {path} cannot be read: {error.strerror or error}"
        ) from error
    except ValidationError as error:
        problems = "; ".join(explain(error, YesCalibration))
        raise ConfigError(f"language.calibration: {path} is not a calibration: {problems}") from error
    for what, found, expected in (
        ("bundle", calibration.bundle, bundle),
        ("language model", calibration.language, language),
    ):
        if found != expected:
            raise ConfigError(
                f"language.calibration: {path} is of {what} {found}, but {expected} is in use; make it anew"
            )
    return calibration
