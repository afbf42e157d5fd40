"""Reads the credential of a call."""

from keybearer._wire.bearer import token_in_metadata
from keybearer.models import Presented
from keybearer_service.domain.errors import CredentialsMissing
from keybearer_service.rpc.requests import Request


def presented_in(request: Request) -> Presented:
    """Return the credential in the metadata of a call.

    Raises:
        CredentialsMissing: There is no well-formed one, or more than one.
    """
    token = token_in_metadata(request.metadata)
    if token is None:
        raise CredentialsMissing
    return Presented(token, lambda: request.peer)
