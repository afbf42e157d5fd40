"""AccountService."""

from keybearer.v1 import account_service_pb2 as pb
from keybearer_service.domain.clock import Clock
from keybearer_service.rpc.convert.accounts import account_query, account_to_proto, new_account
from keybearer_service.rpc.convert.api_keys import issued_fields
from keybearer_service.rpc.convert.common import idempotency_key, page_to_proto
from keybearer_service.rpc.convert.users import user_to_proto
from keybearer_service.usecases.access import reach_of
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.call_context import CallContext


class AccountServicer:
    """The accounts of the installation."""

    def __init__(self, accounts: AccountManager, clock: Clock) -> None:
        self._accounts = accounts
        self._clock = clock

    def CreateAccount(
        self, request: pb.CreateAccountRequest, call: CallContext
    ) -> pb.CreateAccountResponse:
        """Create an account with its first administrator and key."""
        created = self._accounts.create(
            call, new_account(request), idempotency_key(call.method, request)
        )
        return pb.CreateAccountResponse(
            account=account_to_proto(created.account),
            user=user_to_proto(created.user),
            **issued_fields(created.issued, self._clock.now()),
        )

    def GetAccount(self, request: pb.GetAccountRequest, call: CallContext) -> pb.GetAccountResponse:
        """Return one account."""
        account = self._accounts.get(call, request.id)
        return pb.GetAccountResponse(account=account_to_proto(account))

    def ListAccounts(
        self, request: pb.ListAccountsRequest, call: CallContext
    ) -> pb.ListAccountsResponse:
        """Return a page of accounts."""
        query = account_query(reach_of(call), request)
        listed = self._accounts.list(call, query, request.page_size, request.page_token)
        accounts, next_page = page_to_proto(listed, account_to_proto)
        return pb.ListAccountsResponse(accounts=accounts, next_page_token=next_page)

    def DisableAccount(
        self, request: pb.DisableAccountRequest, call: CallContext
    ) -> pb.DisableAccountResponse:
        """Disable an account: every key of it validates as DISABLED."""
        account = self._accounts.disable(call, request.id)
        return pb.DisableAccountResponse(account=account_to_proto(account))

    def EnableAccount(
        self, request: pb.EnableAccountRequest, call: CallContext
    ) -> pb.EnableAccountResponse:
        """Enable a disabled account."""
        account = self._accounts.enable(call, request.id)
        return pb.EnableAccountResponse(account=account_to_proto(account))
