"""The errors of quantization, named for the situation that the user is in."""

from tvau_edge.runtime.errors import TvauError


class CalibrationError(TvauError):
    """The footage cannot be calibrated on: too short, black, or without detail."""


class QuantizeError(TvauError):
    """The bundle cannot be quantized as asked: says what it lacks and what to do."""


class GateError(TvauError):
    """Quantization costs more accuracy than the user allows; no bundle was written."""
