"""The one exception for what a user can cause."""


class UserError(ValueError):
    """A mistake a user can mend: one line with what was asked, what was got, what is allowed and the remedy.

    Programs print it without a traceback and end with exit code 2.
    """
