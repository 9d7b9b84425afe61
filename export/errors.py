"""The errors of export, named for the situation that the user is in."""

from tvau_edge.devices.errors import TvauError

__all__ = ["CheckpointError", "ExportError", "TvauError"]


class CheckpointError(TvauError):
    """The checkpoint is missing, truncated, or does not fit together: names file, tensor or key, and the mismatch."""


class ExportError(TvauError):
    """An artifact does not compute what the checkpoint does, or cannot be made: names tensor, error and limit."""
