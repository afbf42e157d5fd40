"""The watch stream: who is told of which change."""
