"""Users, between their messages and the model."""

from keybearer._wire.enums import UserType
from keybearer.access import Role
from keybearer.v1 import user_pb2, user_service_pb2
from keybearer_service.domain import validators
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.model import User
from keybearer_service.rpc.convert.common import member, members, to_proto, update_paths
from keybearer_service.storage import UserQuery
from keybearer_service.usecases import users
from keybearer_service.usecases.users import Deletion, NewUser, UserUpdate


def new_user(request: user_service_pb2.CreateUserRequest) -> NewUser:
    """Read what a new user is to be."""
    if not request.type:
        raise FieldInvalid("type", "required: USER_TYPE_PERSON or USER_TYPE_SERVICE_ACCOUNT")
    return NewUser(
        email=validators.email("email", request.email),
        display_name=validators.name("display_name", request.display_name),
        role=validators.role("role", member("role", Role, request.role)),
        type=member("type", UserType, request.type),
    )


def user_update(request: user_service_pb2.UpdateUserRequest) -> UserUpdate:
    """Read which fields of a user change, and to what."""
    paths = update_paths(request.update_mask, users.UPDATABLE)
    user = request.user
    validators.required_id("user.id", user.id)
    if request.etag and user.etag and request.etag != user.etag:
        raise FieldInvalid("etag", "differs from user.etag; give one of them")
    return UserUpdate(
        paths=paths,
        display_name=validators.name("user.display_name", user.display_name)
        if "display_name" in paths
        else "",
        role=validators.role("user.role", member("user.role", Role, user.role))
        if "role" in paths
        else Role.UNSPECIFIED,
        etag=request.etag or user.etag,
    )


def user_query(scope: AccountScope, request: user_service_pb2.ListUsersRequest) -> UserQuery:
    """Read which users are asked for."""
    return UserQuery(
        scope=scope,
        roles=tuple(validators.role("roles", one) for one in members("roles", Role, request.roles)),
        types=members("types", UserType, request.types),
        email_contains=validators.contained("email_contains", request.email_contains),
        show_deleted=request.show_deleted,
    )


def user_to_proto(user: User) -> user_pb2.User:
    """Write a user."""
    return to_proto(user_pb2.User, user)


def deletion_to_proto(deletion: Deletion) -> user_service_pb2.DeleteUserResponse:
    """Write what a deletion did, or would do."""
    return user_service_pb2.DeleteUserResponse(
        user=user_to_proto(deletion.user),
        revoked_key_ids=deletion.revoked.ids,
        created_for_others_key_ids=deletion.created_for_others.ids,
        revoked_key_count=deletion.revoked.count,
        created_for_others_key_count=deletion.created_for_others.count,
    )
