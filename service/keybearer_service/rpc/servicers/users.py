"""UserService."""

from keybearer.v1 import user_service_pb2 as pb
from keybearer_service.rpc.convert.common import page_to_proto
from keybearer_service.rpc.convert.users import (
    deletion_to_proto,
    new_user,
    user_query,
    user_to_proto,
    user_update,
)
from keybearer_service.usecases.access import authorize
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.users import UserManager


class UserServicer:
    """The users of an account."""

    def __init__(self, users: UserManager) -> None:
        self._users = users

    def CreateUser(self, request: pb.CreateUserRequest, call: CallContext) -> pb.CreateUserResponse:
        """Create a user."""
        scope = authorize(call, request.account_id)
        user = self._users.create(call, scope, new_user(request))
        return pb.CreateUserResponse(user=user_to_proto(user))

    def GetUser(self, request: pb.GetUserRequest, call: CallContext) -> pb.GetUserResponse:
        """Return one user."""
        user = self._users.get(call, request.id)
        return pb.GetUserResponse(user=user_to_proto(user))

    def ListUsers(self, request: pb.ListUsersRequest, call: CallContext) -> pb.ListUsersResponse:
        """Return a page of users."""
        query = user_query(authorize(call, request.account_id), request)
        listed = self._users.list(call, query, request.page_size, request.page_token)
        users, next_page = page_to_proto(listed, user_to_proto)
        return pb.ListUsersResponse(users=users, next_page_token=next_page)

    def UpdateUser(self, request: pb.UpdateUserRequest, call: CallContext) -> pb.UpdateUserResponse:
        """Update a user."""
        user = self._users.update(call, request.user.id, user_update(request))
        return pb.UpdateUserResponse(user=user_to_proto(user))

    def DeleteUser(self, request: pb.DeleteUserRequest, call: CallContext) -> pb.DeleteUserResponse:
        """Delete a user and revoke the user's keys."""
        deletion = self._users.delete(
            call,
            request.id,
            validate_only=request.validate_only,
            revoke_created=request.revoke_created,
        )
        return deletion_to_proto(deletion)
