"""Opens an installation for the commands that work on it beside a server."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from keybearer_service.config import load
from keybearer_service.container import Container, open_container, open_store
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.storage import FileStore
from keybearer_service.telemetry import logs


@contextmanager
def opened_store(config: Path | None, data_dir: str | None) -> Iterator[FileStore]:
    """Open the database of the installation without its key files, and close it after the block.

    Raises:
        ConfigError: A setting is wrong.
        DataDirError, StoreError: The database cannot be opened.
    """
    settings = load(config, {"data_dir": data_dir})
    logs.configure("warning", json=False)
    directory = DataDir(settings.data_dir)
    directory.assert_initialised()
    directory.assert_writable()
    with directory.shared_with_server(), closing(open_store(directory.database)) as store:
        yield store


@contextmanager
def opened(config: Path | None, data_dir: str | None) -> Iterator[Container]:
    """Open the installation that the settings name, and close it after the block.

    Raises:
        ConfigError: A setting is wrong.
        DataDirError, StoreError, KeyringError: The installation cannot be opened.
    """
    settings = load(config, {"data_dir": data_dir})
    logs.configure("warning", json=False)
    directory = DataDir(settings.data_dir)
    directory.assert_initialised()
    directory.assert_writable()
    with directory.shared_with_server():
        container = open_container(directory, SystemClock(), SystemEntropy())
        try:
            yield container
        finally:
            container.close()
