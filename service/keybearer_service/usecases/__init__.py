"""What callers can do, independent of how they call."""
