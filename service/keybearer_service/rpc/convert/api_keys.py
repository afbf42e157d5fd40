"""Keys, between their messages and the model."""

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from google.protobuf.message import Message

from keybearer._wire.enums import ApiKeyState, RevocationReason
from keybearer._wire.limits import API_KEY_ORDERS
from keybearer.access import Role
from keybearer.v1 import api_key_pb2, api_key_service_pb2, token_service_pb2
from keybearer_service.domain import validators
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import Micros
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.model import KEY_SETTINGS, ApiKey
from keybearer_service.rpc.convert.common import (
    member,
    members,
    micros_from_duration,
    micros_from_timestamp,
    optional_time,
    timestamp,
    to_proto,
    update_paths,
)
from keybearer_service.storage import KeyQuery
from keybearer_service.usecases import keys
from keybearer_service.usecases.issuing import NEVER_EXPIRES, Expiration, IssuedKey, NewKey
from keybearer_service.usecases.keys import KeyUpdate
from keybearer_service.usecases.revoking import KeyRevocation


def new_key(request: api_key_service_pb2.CreateApiKeyRequest) -> NewKey:
    """Read what a new key is to be."""
    role = validators.role("role", member("role", Role, request.role))
    return NewKey(
        owner_id=request.owner_id,
        role=role,
        scopes=validators.scopes("scopes", request.scopes, role),
        expiration=_expiration(request),
        **_settings(request, KEY_SETTINGS),
    )


def key_update(request: api_key_service_pb2.UpdateApiKeyRequest) -> KeyUpdate:
    """Read which fields of a key change, and to what."""
    paths = update_paths(request.update_mask, keys.UPDATABLE)
    key = request.api_key
    validators.required_id("api_key.id", key.id)
    if "expiration" not in paths and request.WhichOneof("expiration") is not None:
        raise FieldInvalid("update_mask", "must name `expiration` when one is chosen")
    if request.etag and key.etag and request.etag != key.etag:
        raise FieldInvalid("etag", "differs from api_key.etag; give one of them")
    return KeyUpdate(
        paths=paths,
        settings=_settings(key, paths, prefix="api_key."),
        # Checked later, against the role that the key will have: only the store knows that one.
        scopes=tuple(key.scopes),
        role=member("api_key.role", Role, key.role) if "role" in paths else Role.UNSPECIFIED,
        expiration=_expiration(request) if "expiration" in paths else None,
        overlap_end_time=micros_from_timestamp("api_key.overlap_end_time", key.overlap_end_time)
        if "overlap_end_time" in paths and key.HasField("overlap_end_time")
        else None,
        etag=request.etag or key.etag,
    )


def _settings(message: Message, wanted: Container[str], prefix: str = "") -> dict[str, Any]:
    return {
        name: check(f"{prefix}{name}", getattr(message, name))
        for name, check in validators.KEY_SETTINGS.items()
        if name in wanted
    }


def _expiration(
    request: api_key_service_pb2.CreateApiKeyRequest | api_key_service_pb2.UpdateApiKeyRequest,
) -> Expiration:
    choice = request.WhichOneof("expiration")
    if choice == "expire_time":
        return Expiration(at=micros_from_timestamp("expire_time", request.expire_time))
    if choice == "ttl":
        return Expiration(ttl=micros_from_duration("ttl", request.ttl))
    if choice == "never_expires" and request.never_expires:
        return NEVER_EXPIRES
    raise FieldInvalid("expiration", "one of expire_time, ttl, never_expires: true is required")


def revocation(
    request: api_key_service_pb2.RevokeApiKeyRequest | api_key_service_pb2.RevokeApiKeysRequest,
) -> tuple[RevocationReason, str]:
    """Read why a key is to be revoked."""
    if not request.reason:
        raise FieldInvalid(
            "reason", "one of LOST, COMPROMISED, SUPERSEDED, NO_LONGER_USED is required"
        )
    reason = member("reason", RevocationReason, request.reason)
    return reason, validators.long_text("note", request.note)


def wanted_ids(request: api_key_service_pb2.RevokeApiKeysRequest) -> Sequence[str]:
    """Read which keys are named; none when a filter says which."""
    if request.HasField("filter") == bool(request.ids):
        raise FieldInvalid("ids", "either ids or a filter is required, and not both")
    if request.ids and request.page_token:
        raise FieldInvalid("page_token", "only with a filter")
    return [
        validators.required_id(f"ids[{index}]", key_id) for index, key_id in enumerate(request.ids)
    ]


def filter_query(
    scope: AccountScope, wanted: api_key_service_pb2.ApiKeyFilter, now: Micros
) -> KeyQuery:
    """Read which keys a filter matches."""
    states = members("filter.states", ApiKeyState, wanted.states)
    query = KeyQuery(
        scope=scope,
        now=now,
        states=states,
        owner_id=wanted.owner_id,
        name_contains=validators.contained("filter.name_contains", wanted.name_contains),
        expires_before=optional_time(wanted, "expires_before"),
        unused_since=optional_time(wanted, "unused_since"),
    )
    if query == KeyQuery(scope=scope, now=now):
        raise FieldInvalid(
            "filter", "required: states, owner_id, name_contains, expires_before or unused_since"
        )
    return query if states else replace(query, states=_NOT_REVOKED)


def revocations_to_proto(
    revocations: Sequence[KeyRevocation],
) -> Sequence[api_key_service_pb2.ApiKeyRevocation]:
    """Write what became of keys."""
    return [
        api_key_service_pb2.ApiKeyRevocation(
            id=one.id,
            result=int(one.result),  # type: ignore[arg-type]  # the numbers are those of the proto
            name="" if one.key is None else one.key.name,
            owner_email="" if one.key is None else one.key.owner_email,
            last_used_time=timestamp(None if one.key is None else one.key.last_used_time),
        )
        for one in revocations
    ]


_NOT_REVOKED = tuple(one for one in ApiKeyState if one not in (0, ApiKeyState.REVOKED))


def overlap(
    request: api_key_service_pb2.RotateApiKeyRequest | token_service_pb2.RotateSelfRequest,
) -> int:
    """Read for how long the old secret stays valid, in microseconds; 0 when absent."""
    return validators.overlap("overlap", micros_from_duration("overlap", request.overlap))


def key_query(
    scope: AccountScope, request: api_key_service_pb2.ListApiKeysRequest, now: Micros
) -> KeyQuery:
    """Read which keys are asked for, and in which order."""
    order_by, _, direction = request.order_by.strip().partition(" ")
    if request.order_by.strip() and (
        order_by not in API_KEY_ORDERS or direction not in ("", "desc")
    ):
        raise FieldInvalid(
            "order_by", f"one of {', '.join(API_KEY_ORDERS)}, each optionally with ` desc`"
        )
    return KeyQuery(
        scope=scope,
        now=now,
        states=members("states", ApiKeyState, request.states),
        owner_id=request.owner_id,
        name_contains=validators.contained("name_contains", request.name_contains),
        expires_before=optional_time(request, "expires_before"),
        unused_since=optional_time(request, "unused_since"),
        order_by=order_by or "create_time",
        descending=direction == "desc" if order_by else True,
    )


def key_to_proto(key: ApiKey, now: Micros) -> api_key_pb2.ApiKey:
    """Write a key with the state it has at `now`."""
    return to_proto(
        api_key_pb2.ApiKey,
        key,
        state=key.state_at(now),
        overlap_end_time=timestamp(key.overlap_end_time if key.overlaps_at(now) else None),
    )


class IssuedFields(TypedDict):
    """The fields of every response with a new token."""

    api_key: api_key_pb2.ApiKey
    token: str
    replayed: bool


def issued_fields(issued: IssuedKey, now: Micros) -> IssuedFields:
    """Write a key with its new token. The token goes into a response and nowhere else."""
    return IssuedFields(
        api_key=key_to_proto(issued.key, now), token=issued.token, replayed=issued.replayed
    )
