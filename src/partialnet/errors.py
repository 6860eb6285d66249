"""The error for mistakes that a user can mend."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message is one sentence that says what, and what to do.

    The command line prints it and exits with code 2.
    """
