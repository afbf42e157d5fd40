"""The decision about a token, and the count of its uses."""
