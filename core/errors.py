"""The one error that is the user's to mend."""


class UserError(ValueError):
    """A mistake in a config, a declaration or a command: one clear line that says what would be right."""
