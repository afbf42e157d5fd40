"""`migrate`."""

from keybearer_service.cli.options import (
    ConfigOption,
    DatabaseOption,
    DatabasePasswordFileOption,
    InsecureDatabaseOption,
    Output,
    OutputOption,
)
from keybearer_service.cli.output import print_result
from keybearer_service.config import ConfigError, load
from keybearer_service.container import migrate_store


def migrate(
    *,
    database: DatabaseOption = None,
    database_password_file: DatabasePasswordFileOption = None,
    insecure_database: InsecureDatabaseOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Bring the schema of a database on PostgreSQL up to date, while servers use it."""
    settings = load(
        config,
        {
            "database": database,
            "database_password_file": database_password_file,
            "insecure_database": insecure_database,
        },
    )
    if settings.database_url is None:
        raise ConfigError("database: name one; a file is brought up to date when it is opened")
    done = migrate_store(settings.database_url)
    text = f"Done: {', '.join(done)}." if done else "Nothing to do."
    print_result({"steps": done}, text, output)
