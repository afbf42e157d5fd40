"""The version of this package, as pyproject.toml has it."""

from importlib.metadata import PackageNotFoundError, version


def _read_version() -> str:
    try:
        return version("keybearer")
    except PackageNotFoundError:
        # The source tree is on the path, and the package is not installed.
        return "0+unknown"


VERSION = _read_version()
