"""Every method of every service, read from the descriptors, with a request that it can serve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.protobuf.message import Message

from keybearer_service.endpoints import served_methods
from keybearer_service.rpc import health, reflection
from keybearer_service.rpc.pipeline import MethodSpec

V1 = "/keybearer.v1."
CHECK = "/envoy.service.auth.v3.Authorization/Check"


@dataclass(frozen=True)
class Method:
    """A method and a request for it."""

    path: str
    is_stream: bool
    request: bytes
    """A whole message, with the five bytes before it."""


def every_method(token: str, key_id: str) -> Sequence[Method]:
    """Return every method that is served.

    Methods without a request of their own here get an empty one, which most of them refuse: theirs
    would use up what it is about.

    Args:
        token: Of a key that requests are about.
        key_id: Of that key.
    """
    requests = _requests(token, key_id)
    specs: list[MethodSpec] = [*served_methods().values(), *health.SPECS, *reflection.SPECS]
    unknown = requests.keys() - {spec.path for spec in specs}
    assert not unknown, unknown
    return [
        Method(spec.path, spec.is_stream, _framed(_message(spec, requests.get(spec.path, {}))))
        for spec in specs
    ]


def _requests(token: str, key_id: str) -> Mapping[str, Mapping[str, Any]]:
    keys, tokens = f"{V1}ApiKeyService/", f"{V1}TokenService/"
    asks_for_services = {"list_services": "*"}
    return {
        f"{keys}CreateApiKey": {
            "name": "cancelled",
            "role": "ROLE_VALIDATOR",
            "ttl": timedelta(minutes=5),
        },
        f"{keys}GetApiKey": {"id": key_id},
        f"{keys}DisableApiKey": {"id": key_id},
        f"{keys}EnableApiKey": {"id": key_id},
        f"{keys}RotateApiKey": {"id": key_id},
        f"{tokens}ValidateToken": {"token": token},
        f"{tokens}BatchValidateTokens": {"requests": [{"token": token}] * 3},
        f"{tokens}WatchInvalidations": {"subscribe": {}},
        # Anything else would end the credential of the caller.
        f"{tokens}RotateSelf": {"overlap": timedelta(seconds=-1)},
        CHECK: {
            "attributes": {"request": {"http": {"headers": {"authorization": f"Bearer {token}"}}}}
        },
        **{spec.path: asks_for_services for spec in reflection.SPECS},
    }


def _message(spec: MethodSpec, fields: Mapping[str, Any]) -> Message:
    make: Any = spec.request
    made: Message = make(**fields)
    return made


def _framed(message: Message) -> bytes:
    data = message.SerializeToString()
    return b"\0" + len(data).to_bytes(4) + data
