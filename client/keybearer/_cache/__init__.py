"""Verifiers that reuse verdicts under a lease, and follow the stream of changes."""
