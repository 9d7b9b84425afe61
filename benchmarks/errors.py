"""The errors of measuring, named for the situation that the user is in."""

from tvau_edge.devices.errors import TvauError

__all__ = ["DataError", "TvauError"]


class DataError(TvauError):
    """A folder of labelled clips is not what its layout says: names the file and what is wrong with it."""
