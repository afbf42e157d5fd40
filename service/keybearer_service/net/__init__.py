"""Addresses, TLS and the client of the health service."""
