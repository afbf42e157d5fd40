"""What the operator can do with accounts."""

from dataclasses import dataclass, replace

from keybearer._wire.enums import AuditAction, AuditTargetType, UserType
from keybearer.access import Role
from keybearer_service.domain import validators
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_digests import Subject
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.errors import OperatorAccountProtected, ResourceNotFound
from keybearer_service.domain.model import Account, SubjectKind, User
from keybearer_service.storage import AccountQuery, Reader, Store
from keybearer_service.usecases import idempotency
from keybearer_service.usecases.access import reach_of
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.idempotency import IdempotencyKey
from keybearer_service.usecases.issuing import Expiration, IssuedKey, KeyIssuer, NewKey
from keybearer_service.usecases.mutations import Mutation, Mutations
from keybearer_service.usecases.pagination import Listed, PageTokens, reading_for
from keybearer_service.usecases.users import NewUser, insert_user

FIRST_KEY_NAME = "first admin key"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAccount:
    """What a new account is to be, with its first administrator and that user's key."""

    name: str
    admin_email: str
    admin_display_name: str
    expiration: Expiration


@dataclass(frozen=True, slots=True)
class CreatedAccount:
    """An account that was just created."""

    account: Account
    user: User
    issued: IssuedKey


def create_account_rows(
    mutation: Mutation, issuer: KeyIssuer, new: NewAccount, *, is_operator: bool, created_by: str
) -> CreatedAccount:
    """Insert an account with its first administrator and key.

    Args:
        mutation: The open change.
        issuer: Draws ids and the secret.
        new: What the account is to be.
        is_operator: Whether it is the operator account; an installation has one.
        created_by: The user who creates it; empty means the new administrator.
    """
    account = Account(
        id=issuer.new_id(), name=new.name, create_time=mutation.now, is_operator=is_operator
    )
    mutation.tx.insert_account(account)
    user = insert_user(
        mutation,
        issuer,
        mutation.scope.narrowed_to(account.id),
        NewUser(
            email=new.admin_email,
            display_name=new.admin_display_name,
            role=Role.ADMIN,
            type=UserType.PERSON,
        ),
    )
    issued = issuer.issue(
        mutation,
        NewKey(name=FIRST_KEY_NAME, role=Role.ADMIN, expiration=new.expiration, labels={}),
        owner=user,
        created_by=created_by or user.id,
    )
    return CreatedAccount(account, user, issued)


class AccountManager:
    """The accounts of the installation."""

    def __init__(
        self,
        store: Store,
        mutations: Mutations,
        issuer: KeyIssuer,
        page_tokens: PageTokens,
    ) -> None:
        self._store = store
        self._mutations = mutations
        self._issuer = issuer
        self._page_tokens = page_tokens

    def create(
        self, call: CallContext, new: NewAccount, request: IdempotencyKey | None
    ) -> CreatedAccount:
        """Create an account, or reissue the token of the key that an earlier attempt created.

        Raises:
            SignInAgain: The caller has to prove again who they are.
            RequestIdReused, ReplayImpossible: See `idempotency.find`.
        """
        caller = call.identity
        with self._mutations.begin(call) as mutation:
            mutation.assert_signed_in_lately()
            replay = idempotency.find(mutation, caller.owner_id, request)
            if replay is not None:
                return self._reissue(mutation, call, replay, request)
            created = create_account_rows(
                mutation, self._issuer, new, is_operator=False, created_by=caller.owner_id
            )
            key = created.issued.key
            idempotency.remember(mutation, caller.owner_id, request, key, None)
            mutation.record(
                AuditAction.ACCOUNT_CREATED,
                account_id=created.account.id,
                target_type=AuditTargetType.ACCOUNT,
                target_id=created.account.id,
                changes=(
                    FieldChange("name", "", new.name),
                    FieldChange("admin_user_id", "", created.user.id),
                    FieldChange("admin_email", "", created.user.email, created.user.id),
                    FieldChange("api_key_id", "", key.id),
                ),
                request_id=request.request_id if request else "",
                also=(
                    Subject(AuditTargetType.USER, created.user.id),
                    Subject(AuditTargetType.API_KEY, key.id),
                ),
            )
            mutation.invalidate(SubjectKind.ACCOUNT, created.account.id, created.account.id)
            return created

    def _reissue(
        self,
        mutation: Mutation,
        call: CallContext,
        replay: idempotency.Replay,
        request: IdempotencyKey | None,
    ) -> CreatedAccount:
        issued = self._issuer.reissue(mutation, replay.key)
        idempotency.remember(mutation, call.identity.owner_id, request, issued.key, replay)
        key = issued.key
        mutation.record(
            AuditAction.API_KEY_REMINTED,
            account_id=key.account_id,
            target_type=AuditTargetType.API_KEY,
            target_id=key.id,
            request_id=request.request_id if request else "",
        )
        mutation.invalidate(SubjectKind.KEY, key.id, key.account_id)
        account = mutation.tx.account(mutation.scope, key.account_id)
        user = mutation.tx.user(mutation.scope, key.owner_id)
        if account is None or user is None:
            raise LookupError(key.account_id)
        return CreatedAccount(account, user, issued)

    def get(self, call: CallContext, account_id: str) -> Account:
        """Return one account.

        Raises:
            ResourceNotFound: There is no such account.
        """
        with self._store.read() as reader:
            return _reachable_account(reader, reach_of(call), account_id)

    def list(
        self, call: CallContext, query: AccountQuery, page_size: int, page_token: str
    ) -> Listed[Account]:
        """Return a page of accounts.

        Raises:
            FieldInvalid: The page size or the page token is not valid.
            CallAbandoned: The caller no longer waits.
        """
        bound_to = ("accounts", query)
        page = self._page_tokens.page(page_size, page_token, bound_to)
        with reading_for(call, self._store) as reader:
            found = reader.list_accounts(query, page)
        return self._page_tokens.listed(
            found, page, bound_to, lambda account: (account.create_time, account.id)
        )

    def disable(self, call: CallContext, account_id: str) -> Account:
        """Disable an account: every key of it validates as DISABLED. Repeating it changes nothing.

        Raises:
            ResourceNotFound: There is no such account.
            OperatorAccountProtected: It is the operator account.
        """
        return self._switch(call, account_id, disabled=True)

    def enable(self, call: CallContext, account_id: str) -> Account:
        """Enable a disabled account. Repeating it changes nothing.

        Raises:
            ResourceNotFound: There is no such account.
            SignInAgain: The caller has to prove again who they are.
        """
        return self._switch(call, account_id, disabled=False)

    def _switch(self, call: CallContext, account_id: str, *, disabled: bool) -> Account:
        with self._mutations.begin(call) as mutation:
            account = _reachable_account(mutation.tx, mutation.scope, account_id)
            if disabled and account.is_operator:
                raise OperatorAccountProtected(account_id)
            if disabled == (account.disable_time is not None):
                return account
            if not disabled:
                mutation.assert_signed_in_lately()
            switched = replace(
                account,
                disable_time=mutation.now if disabled else None,
                row_version=account.row_version + 1,
            )
            mutation.tx.update_account(switched)
            mutation.record(
                AuditAction.ACCOUNT_DISABLED if disabled else AuditAction.ACCOUNT_ENABLED,
                account_id=account_id,
                target_type=AuditTargetType.ACCOUNT,
                target_id=account_id,
            )
            mutation.invalidate(SubjectKind.ACCOUNT, account_id, account_id)
            return switched


def _reachable_account(reader: Reader, scope: AccountScope, account_id: str) -> Account:
    account = reader.account(scope, validators.required_id("id", account_id))
    if account is None:
        raise ResourceNotFound("account", account_id)
    return account
