"""Accounts, between their messages and the model."""

from keybearer.v1 import account_pb2, account_service_pb2
from keybearer_service.domain import validators
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.model import Account
from keybearer_service.rpc.convert.common import micros_from_duration, to_proto
from keybearer_service.storage import AccountQuery
from keybearer_service.usecases.accounts import NewAccount
from keybearer_service.usecases.issuing import NEVER_EXPIRES, Expiration


def new_account(request: account_service_pb2.CreateAccountRequest) -> NewAccount:
    """Read what a new account is to be."""
    expiration = NEVER_EXPIRES
    if request.HasField("ttl"):
        expiration = Expiration(ttl=micros_from_duration("ttl", request.ttl))
    return NewAccount(
        name=validators.name("name", request.name),
        admin_email=validators.email("admin_email", request.admin_email),
        admin_display_name=validators.name("admin_display_name", request.admin_display_name),
        expiration=expiration,
    )


def account_query(
    scope: AccountScope, request: account_service_pb2.ListAccountsRequest
) -> AccountQuery:
    """Read which accounts are asked for."""
    return AccountQuery(
        scope=scope, name_contains=validators.contained("name_contains", request.name_contains)
    )


def account_to_proto(account: Account) -> account_pb2.Account:
    """Write an account."""
    return to_proto(account_pb2.Account, account)
