"""What holds for every message of the package."""

import importlib
import pkgutil
import re
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

import keybearer.v1

NO_SECRETS = {"page_token", "next_page_token"}
"""They tell where a page begins and open nothing."""
_SECRET_NAME = re.compile(r"(^|_)(tokens?|secrets?|password)$")


def _nested(message: Descriptor) -> Iterator[Descriptor]:
    yield message
    for one in message.nested_types:
        yield from _nested(one)


def _messages() -> Iterator[Descriptor]:
    for module in pkgutil.iter_modules(keybearer.v1.__path__):
        if module.name.endswith("_pb2"):
            loaded = importlib.import_module(f"keybearer.v1.{module.name}")
            for message in loaded.DESCRIPTOR.message_types_by_name.values():
                yield from _nested(message)


def _secret_fields() -> list[FieldDescriptor]:
    return [
        field
        for message in _messages()
        for field in message.fields
        if _SECRET_NAME.search(field.name) and field.name not in NO_SECRETS
    ]


def test_every_secret_field_is_redacted_when_a_message_is_printed() -> None:
    """A field named like a secret has debug_redact, so that no log line shows it."""
    shown = [one.full_name for one in _secret_fields() if not one.GetOptions().debug_redact]
    assert shown == []


def test_the_known_secret_fields_are_among_those_that_were_looked_at() -> None:
    """The search by name finds the tokens that are known to be there."""
    assert {one.full_name.removeprefix("keybearer.v1.") for one in _secret_fields()} >= {
        "CreateAccountResponse.token",
        "CreateApiKeyResponse.token",
        "RevokeTokenRequest.token",
        "RotateApiKeyResponse.token",
        "RotateSelfResponse.token",
        "ValidateTokenRequest.token",
    }
