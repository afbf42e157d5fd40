"""What a local command refuses."""


class LocalError(Exception):
    """The command cannot do what was asked. The text says why."""
