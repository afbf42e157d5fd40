"""`python -m keybearer_service`."""

from keybearer_service.cli import main

main()
