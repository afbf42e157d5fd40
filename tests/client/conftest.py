"""The fixtures that users of the library get, for its own tests."""

from keybearer.testing import fake_keybearer

__all__ = ["fake_keybearer"]
