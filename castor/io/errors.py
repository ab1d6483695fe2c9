"""The exceptions a person is meant to read."""


class CastorError(Exception):
    """Something the person who started the run can put right.

    The message is one sentence (or one per line, for several findings) that names what is wrong, where, and what to do.
    The command line prints it without a traceback and exits with code 2. Every other exception is a defect or a failure
    of the machine: it propagates, its traceback goes to the run's log, and the exit code is 1.
    """


class Unreachable(CastorError):
    """A service does not answer, which may pass: worth another try later."""


def first_line(error: Exception) -> str:
    """The first line of an error's text, for messages of one sentence."""
    return str(error).strip().split("\n", 1)[0]
