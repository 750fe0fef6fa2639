"""Errors that a user can mend."""


class UserError(ValueError):
    """One line that names the key, file or value that is wrong, and the fix. Shown without a traceback."""
