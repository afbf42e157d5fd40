"""What lies in a data directory."""
