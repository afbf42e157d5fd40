"""What the service is about, without I/O. Imports nothing else of the service."""
