"""Commands that work on the data directory, without a network."""
