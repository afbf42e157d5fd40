"""The keybearer service: issues, lists, rotates, revokes and validates API keys."""
