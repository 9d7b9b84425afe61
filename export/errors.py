"""The errors of export, named for the situation that the user is in."""

from tvau_edge.devices.errors import TvauError

__all__ = ["CheckpointError", "TvauError"]


class CheckpointError(TvauError):
    """The checkpoint is missing, truncated, or does not fit together: names file, tensor or key, and the mismatch."""
