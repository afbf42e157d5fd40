"""The error of commands on the data directory."""


class LocalError(Exception):
    """A command cannot do what was asked; the text says why."""
