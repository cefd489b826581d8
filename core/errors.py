"""The one error that is the user's to mend."""


class UserError(ValueError):
    """A mistake in a config, a declaration or a command: one clear line that says what would be right."""


def require(holds: bool, message: str) -> None:
    """Raise UserError with the message unless it holds."""
    if not holds:
        raise UserError(message)
