"""`keybearer-server`, and `python -m keybearer_service`."""

import sys

_EXTRA = frozenset(
    {
        "grpc_health",
        "grpc_reflection",
        "h11",
        "prometheus_client",
        "pydantic",
        "pydantic_settings",
        "rich",
        "sqlite_utils",
        "starlette",
        "structlog",
        "typer",
        "uvicorn",
    }
)
"""What the extra `server` brings and a plain install, which is the client, does not."""


def main() -> None:
    """Run the command; without the extra, say in one line how to get it."""
    try:
        from keybearer_service.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        sys.exit(
            "keybearer-server: the server needs more than the client: "
            "pip install 'keybearer[server]'"
        )
    run()


if __name__ == "__main__":
    main()
