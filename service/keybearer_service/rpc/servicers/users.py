"""UserService."""

from keybearer.v1 import user_service_pb2 as pb
from keybearer_service.rpc import convert
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.users import UserManager


class UserServicer:
    """The users of an account."""

    def __init__(self, users: UserManager) -> None:
        """Take the use cases."""
        self._users = users

    def CreateUser(self, request: pb.CreateUserRequest, call: CallContext) -> pb.CreateUserResponse:
        """Make a user."""
        account_id = call.account(request.account_id)
        user = self._users.create(call, account_id, convert.new_user(request))
        return pb.CreateUserResponse(user=convert.user_to_proto(user))

    def GetUser(self, request: pb.GetUserRequest, call: CallContext) -> pb.GetUserResponse:
        """Answer one user."""
        user = self._users.get(call, request.id)
        return pb.GetUserResponse(user=convert.user_to_proto(user))

    def ListUsers(self, request: pb.ListUsersRequest, call: CallContext) -> pb.ListUsersResponse:
        """Answer a page of users."""
        query = convert.user_query(call.account(request.account_id), request)
        users, next_page = self._users.list(query, request.page_size, request.page_token)
        return pb.ListUsersResponse(
            users=[convert.user_to_proto(user) for user in users], next_page_token=next_page
        )

    def UpdateUser(self, request: pb.UpdateUserRequest, call: CallContext) -> pb.UpdateUserResponse:
        """Change a user."""
        user = self._users.update(call, request.user.id, convert.user_update(request))
        return pb.UpdateUserResponse(user=convert.user_to_proto(user))

    def DeleteUser(self, request: pb.DeleteUserRequest, call: CallContext) -> pb.DeleteUserResponse:
        """Delete a user and revoke the user's keys."""
        deletion = self._users.delete(
            call,
            request.id,
            validate_only=request.validate_only,
            revoke_created=request.revoke_created,
        )
        return convert.deletion_to_proto(deletion)
