"""Errors meant for the person at the keyboard."""


class UserError(ValueError):
    """The user's input is wrong: the message says what, the numbers, and the fix.

    The command line prints the message without a traceback and exits with status 2.
    """
