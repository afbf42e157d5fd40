"""`keybearer-server`: the command line of the service."""

import os

# Read by grpc when it is imported. Its core writes a line to standard error for every handshake
# that fails, as anybody can make them do, and the write waits for its reader.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from keybearer_service.cli.root import app, main

__all__ = ["app", "main"]
