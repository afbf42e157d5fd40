"""Opens an installation for the commands that work on it beside a server."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from keybearer_service.config import load
from keybearer_service.container import Container, open_container, open_store
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.storage import Store
from keybearer_service.telemetry import logs


@contextmanager
def opened_store(
    config: Path | None, data_dir: str | None, database: str | None
) -> Iterator[Store]:
    """Open the database of the installation without its key files, and close it after the block.

    Raises:
        ConfigError: A setting is wrong.
        DataDirError, StoreError: The database cannot be opened.
    """
    directory = _directory(config, data_dir, database)
    with (
        directory.shared_with_server(),
        closing(open_store(directory.location, is_patient=True)) as store,
    ):
        yield store


@contextmanager
def opened(config: Path | None, data_dir: str | None, database: str | None) -> Iterator[Container]:
    """Open the installation that the settings name, and close it after the block.

    Raises:
        ConfigError: A setting is wrong.
        DataDirError, StoreError, KeyringError: The installation cannot be opened.
    """
    directory = _directory(config, data_dir, database)
    with directory.shared_with_server():
        container = open_container(
            directory,
            SystemClock(),
            SystemEntropy(),
            opener=partial(open_store, is_patient=True),
        )
        try:
            yield container
        finally:
            container.close()


def _directory(config: Path | None, data_dir: str | None, database: str | None) -> DataDir:
    settings = load(config, {"data_dir": data_dir, "database": database})
    logs.configure("warning", json=False)
    directory = DataDir(settings.data_dir, settings.database_url)
    directory.assert_initialised()
    directory.assert_writable()
    return directory
