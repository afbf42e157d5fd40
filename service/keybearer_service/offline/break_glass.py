"""Issues an admin token to whoever may write the data directory."""

from keybearer.access import Role
from keybearer_service.domain import validators
from keybearer_service.domain.audit_event import Action, FieldChange, TargetType
from keybearer_service.domain.clock import Micros, rfc3339
from keybearer_service.domain.errors import ResourceNotFound
from keybearer_service.domain.model import SubjectKind, User, UserType
from keybearer_service.offline.errors import LocalError
from keybearer_service.usecases.issuing import Expiration, IssuedKey, KeyIssuer, NewKey
from keybearer_service.usecases.mutations import Mutation, Mutations
from keybearer_service.usecases.users import NewUser, insert_user

BREAK_GLASS_KEY_NAME = "break-glass admin key"


def issue_admin_token(
    mutations: Mutations, issuer: KeyIssuer, account_id: str, email: str, ttl: int
) -> IssuedKey:
    """Issue an ADMIN key to a user, who is made when there is none with this address.

    Raises:
        ResourceNotFound: No such account.
        LocalError: The user is there and is no administrator.
    """
    address = validators.email("email", email)
    with mutations.begin_local() as mutation:
        if mutation.tx.account(account_id) is None:
            raise ResourceNotFound("account", account_id)
        user = mutation.tx.user_by_email(account_id, address)
        if user is not None and user.role is not Role.ADMIN:
            raise LocalError(
                f"{address} is {user.role.name}, and a key never holds more than its owner; "
                "name an administrator, or an address that is not there yet"
            )
        if user is None:
            user = _insert_administrator(mutation, issuer, account_id, address)
        issued = issuer.issue(
            mutation,
            NewKey(
                name=BREAK_GLASS_KEY_NAME,
                role=Role.ADMIN,
                expiration=Expiration(ttl=ttl),
                labels={},
            ),
            owner=user,
            created_by=user.id,
        )
        mutation.record(
            Action.ADMIN_TOKEN_ISSUED,
            account_id=account_id,
            target_type=TargetType.API_KEY,
            target_id=issued.key.id,
            changes=(
                FieldChange("owner_id", "", user.id),
                FieldChange("expire_time", "", rfc3339(issued.key.expire_time or Micros(0))),
            ),
        )
        mutation.invalidate(SubjectKind.KEY, issued.key.id, account_id)
        return issued


def _insert_administrator(
    mutation: Mutation, issuer: KeyIssuer, account_id: str, email: str
) -> User:
    new = NewUser(email=email, display_name=email[:100], role=Role.ADMIN, type=UserType.PERSON)
    user = insert_user(mutation, issuer, account_id, new)
    mutation.record(
        Action.USER_CREATED,
        account_id=account_id,
        target_type=TargetType.USER,
        target_id=user.id,
        changes=(FieldChange("email", "", email), FieldChange("role", "", "ADMIN")),
    )
    return user
