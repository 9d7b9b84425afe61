"""The base of every error that a person is meant to read; in the lowest room, since every room raises it."""


class TvauError(Exception):
    """A situation that the user can mend: the message says what was wrong, where, and what to do.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1
