"""What callers can do, without a word of how they call."""
