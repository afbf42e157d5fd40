"""Admin tokens for people who may write to the data directory."""

from keybearer._wire.enums import AuditAction, AuditTargetType, UserType
from keybearer.access import Role
from keybearer_service.domain import validators
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.clock import Micros, rfc3339
from keybearer_service.domain.model import SubjectKind, User
from keybearer_service.offline.errors import LocalError
from keybearer_service.usecases.access import assert_account_exists
from keybearer_service.usecases.issuing import Expiration, IssuedKey, KeyIssuer, NewKey
from keybearer_service.usecases.mutations import Mutation, Mutations
from keybearer_service.usecases.users import NewUser, insert_user

BREAK_GLASS_KEY_NAME = "break-glass admin key"


def issue_admin_token(
    mutations: Mutations, issuer: KeyIssuer, account_id: str, email: str, ttl: int
) -> IssuedKey:
    """Issue an ADMIN key to the user with this address, who is created when there is none.

    Raises:
        ResourceNotFound: There is no such account.
        LocalError: The user exists and is not an administrator.
    """
    address = validators.email("email", email)
    with mutations.begin_local() as mutation:
        scope = mutation.scope.narrowed_to(account_id)
        assert_account_exists(mutation.tx, scope)
        user = mutation.tx.user_by_email(scope, address)
        if user is not None and user.role is not Role.ADMIN:
            raise LocalError(
                f"{address} is {user.role.name}, and a key never holds more than its owner; "
                "name an administrator, or an address that is not there yet"
            )
        if user is None:
            user = _insert_administrator(mutation, issuer, scope, address)
        issued = issuer.issue(
            mutation,
            NewKey(
                name=BREAK_GLASS_KEY_NAME,
                role=Role.ADMIN,
                expiration=Expiration(ttl=ttl),
            ),
            owner=user,
            created_by=user.id,
        )
        mutation.record(
            AuditAction.ADMIN_TOKEN_ISSUED,
            account_id=account_id,
            target_type=AuditTargetType.API_KEY,
            target_id=issued.key.id,
            changes=(
                FieldChange("owner_id", "", user.id),
                FieldChange("expire_time", "", rfc3339(issued.key.expire_time or Micros(0))),
            ),
        )
        mutation.invalidate(SubjectKind.KEY, issued.key.id, account_id)
        return issued


def _insert_administrator(
    mutation: Mutation, issuer: KeyIssuer, scope: AccountScope, email: str
) -> User:
    new = NewUser(email=email, display_name=email[:100], role=Role.ADMIN, type=UserType.PERSON)
    user = insert_user(mutation, issuer, scope, new)
    mutation.record(
        AuditAction.USER_CREATED,
        account_id=user.account_id,
        target_type=AuditTargetType.USER,
        target_id=user.id,
        changes=(FieldChange("email", "", email, user.id), FieldChange("role", "", "ADMIN")),
    )
    return user
