"""The pages of keys: list, create, shown once, details, revoke."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from starlette.responses import RedirectResponse

from keybearer._wire.enums import ApiKeyState, UserType
from keybearer_service.console import links
from keybearer_service.console.audit_texts import happened_to_key
from keybearer_service.console.forms import CreateForm, FormErrors, RevokeForm, errors_of
from keybearer_service.console.key_list import KeyList
from keybearer_service.console.key_texts import (
    REASONS,
    ROLE_WORDS,
    done_words,
    is_used_lately,
    notices_of,
    reason_words,
    row_of,
)
from keybearer_service.console.problems import Problem
from keybearer_service.console.visits import Answer, Visit
from keybearer_service.console.ways_in import WaysIn
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import FieldInvalid, ReplayImpossible, RequestIdReused
from keybearer_service.storage import AuditQuery, UserQuery
from keybearer_service.usecases.audit import AuditHistory
from keybearer_service.usecases.issuing import IssuedKey
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.revoking import KeyRevoker
from keybearer_service.usecases.users import UserManager

HISTORY_PAGE: Final = 20
SUGGESTED_OWNERS: Final = 100


class KeyPages:
    """The views of keys. They call use cases, and nothing else."""

    def __init__(
        self,
        key_list: KeyList,
        keys: KeyManager,
        revoker: KeyRevoker,
        users: UserManager,
        audit: AuditHistory,
        ways_in: WaysIn,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._ways_in = ways_in
        self._list = key_list
        self._keys = keys
        self._revoker = revoker
        self._users = users
        self._audit = audit
        self._clock = clock
        self._entropy = entropy

    # --- list -------------------------------------------------------------------------------------

    def list(self, visit: Visit) -> Answer:
        """Show the keys of the account."""
        return self._list.page(visit)

    # --- create -----------------------------------------------------------------------------------

    def new(self, visit: Visit) -> Answer:
        """Show the form for a new key."""
        return self._create_form(visit, CreateForm.fresh(self._entropy))

    def create(self, visit: Visit) -> Answer:
        """Create a key and show its secret, this once."""
        form = CreateForm.read(visit.form)
        try:
            issued = self._create(visit, form)
        except FormErrors as error:
            return self._create_form(visit, form, errors=error.errors, status=400)
        except FieldInvalid as error:
            return self._create_form(visit, form, errors=errors_of(error), status=400)
        except (ReplayImpossible, RequestIdReused) as error:
            return self._made_before(visit, form, is_other=isinstance(error, RequestIdReused))
        return self._list.with_secret(visit, key=issued.key, token=issued.token)

    def create_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show the form for a new key with all that was typed, when it could not be carried out."""
        return self._create_form(visit, CreateForm.read(visit.form), problem=problem)

    def _create(self, visit: Visit, form: CreateForm) -> IssuedKey:
        scope = visit.scope
        new = form.new_key("")
        new = replace(new, owner_id=self._owner_id(visit, form.owner))
        request = form.idempotency_key(scope.only, new.owner_id)
        return self._keys.create(visit.call, scope, new, request)

    def _owner_id(self, visit: Visit, email: str) -> str:
        wanted = email.strip().lower()
        if not wanted and not visit.account:
            return ""
        if not wanted:
            raise FormErrors({"owner": "Choose the user of this account that the key belongs to."})
        found = self._users.by_email(visit.call, visit.scope, wanted)
        if found is None:
            raise FormErrors({"owner": "No user of this account has this e-mail address."})
        return found.id

    def _create_form(
        self,
        visit: Visit,
        form: CreateForm,
        *,
        errors: Mapping[str, str] | None = None,
        problem: Problem | None = None,
        status: int = 200,
    ) -> Answer:
        return self._list.above(
            "create.html",
            visit,
            status=status,
            problem=problem,
            form=form,
            errors=errors or {},
            owners=[] if problem else self._suggested_owners(visit),
            roles=ROLE_WORDS,
        )

    def _suggested_owners(self, visit: Visit) -> Sequence[str]:
        query = UserQuery(scope=visit.scope)
        users = self._users.list(visit.call, query, SUGGESTED_OWNERS, "").items
        ordered = sorted(users, key=lambda user: user.type is not UserType.SERVICE_ACCOUNT)
        return [user.email for user in ordered]

    def _made_before(self, visit: Visit, form: CreateForm, *, is_other: bool) -> Answer:
        made = self._keys.made_before(visit.call, form.request_id)
        return self._list.above(
            "made.html",
            visit,
            status=409,
            form=form,
            key=None if made is None else made.key,
            next_attempt=made.attempt + 1 if made and made.is_reissuable and not is_other else 0,
            is_other=is_other,
        )

    def saved(self, visit: Visit) -> Answer:
        """Go on from the page that showed a secret."""
        target = links.keys_link(visit.state, at=f"key-{visit.key_id}")
        return Answer(RedirectResponse(target, 303))

    # --- details ----------------------------------------------------------------------------------

    def details(self, visit: Visit) -> Answer:
        """Show everything about a key."""
        key = self._list.key(visit)
        query = AuditQuery(scope=visit.scope, target_id=key.id)
        try:
            history = self._audit.list(
                visit.call, query, HISTORY_PAGE, visit.query.get("history", "")
            )
        except FieldInvalid:  # a page of another list
            history = self._audit.list(visit.call, query, HISTORY_PAGE, "")
        now = self._clock.now()
        return self._list.above(
            "details.html",
            visit,
            key=key,
            row=row_of(key, now),
            reason=reason_words(key),
            notices=list(notices_of(key, now)),
            history=[happened_to_key(event) for event in history.items],
            more_history=history.next_page_token,
            done=done_words(visit.query.get("done", ""), key, now),
            can_change=key.state_at(now) in (ApiKeyState.ACTIVE, ApiKeyState.DISABLED),
        )

    # --- revoke -----------------------------------------------------------------------------------

    def revoking(self, visit: Visit) -> Answer:
        """Show the form that revokes a key."""
        return self._revoke_form(visit, RevokeForm())

    def revoke(self, visit: Visit) -> Answer:
        """Revoke a key, and say so above the list."""
        form = RevokeForm.read(visit.form)
        key = self._list.key(visit)
        if key.revoke_time is not None:
            return self._revoke_form(visit, form)
        try:
            self._revoker.revoke(visit.call, visit.key_id, *form.revocation())
        except FormErrors as error:
            return self._revoke_form(visit, form, errors=error.errors, status=400)
        target = links.keys_link(visit.state, revoked=visit.key_id)
        return Answer(RedirectResponse(target, 303))

    def revoke_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show the form that revokes a key as it was, when it could not be carried out."""
        return self._revoke_form(visit, RevokeForm.read(visit.form), problem=problem)

    def _revoke_form(
        self,
        visit: Visit,
        form: RevokeForm,
        *,
        errors: Mapping[str, str] | None = None,
        problem: Problem | None = None,
        status: int = 200,
    ) -> Answer:
        now = self._clock.now()
        key = self._list.key_after(visit, problem)
        return self._list.above(
            "revoke.html",
            visit,
            status=status,
            problem=problem,
            key=key,
            key_id=visit.key_id,
            form=form,
            errors=errors or {},
            reasons=REASONS,
            reason="" if key is None else reason_words(key),
            is_used_lately=key is not None and is_used_lately(key, now),
            leaves_nobody=key is not None and self._ways_in.none_without_keys([key]),
            is_own=key is not None and key.id == visit.call.identity.key_id,
        )
