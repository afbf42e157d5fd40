"""`keybearer-server`: the command line of the service."""

from keybearer_service.cli.root import app, main

__all__ = ["app", "main"]
