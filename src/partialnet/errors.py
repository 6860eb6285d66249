"""The error for mistakes that a user can mend."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message is one sentence that says what, and what to do.

    The command line prints it and exits with code 2.
    """


class RunInterrupted(Exception):
    """Training was asked to stop and has saved its state; the message names the command that resumes it.

    The command line prints it and exits with 75, which tells a cluster's scheduler to run the command again.
    """
