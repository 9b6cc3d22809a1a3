"""The exceptions that are meant for people: what was wrong, where, and what to do."""


class WeaksegError(Exception):
    """A mistake or a mishap that the user can mend.

    The command line prints its text without a traceback and exits with status 1. The text names the file
    or the setting, what was found, what was expected, and what to do next.
    """


class Stopped(Exception):
    """The user stopped the work (Ctrl-C). The text says what is kept and how to go on."""
