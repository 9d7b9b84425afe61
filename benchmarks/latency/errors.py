"""The errors of benchmarking, named for the situation that the user is in."""

from tvau_edge.devices.errors import TvauError

__all__ = ["BenchError", "RegressionError", "TvauError"]


class BenchError(TvauError):
    """A benchmark cannot be run, read or compared; says which part, and what to do."""


class RegressionError(TvauError):
    """A comparison found rows that are slower than allowed; nothing is wrong with the command."""

    exit_code = 3
