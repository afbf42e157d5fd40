"""The page of the audit log."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.console import times
from keybearer_service.console.audit_texts import ACTION_WORDS, log_line
from keybearer_service.console.links import AuditState
from keybearer_service.console.pages import Pages
from keybearer_service.console.problems import sentence
from keybearer_service.console.visits import Answer, Visit
from keybearer_service.domain import validators
from keybearer_service.domain.audit_event import AuditEvent
from keybearer_service.domain.clock import DAY, Micros, after
from keybearer_service.domain.errors import FieldInvalid, ResourceNotFound
from keybearer_service.storage import AuditQuery
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.audit import AuditHistory
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.users import UserManager

NOBODY: Final = "-"
"""No id is like this one: what an address that nobody has stands for."""


class AuditPages:
    """The view of the log. It calls use cases, and nothing else."""

    def __init__(
        self,
        pages: Pages,
        audit: AuditHistory,
        keys: KeyManager,
        users: UserManager,
        accounts: AccountManager,
    ) -> None:
        self._pages = pages
        self._audit = audit
        self._keys = keys
        self._users = users
        self._accounts = accounts

    def list(self, visit: Visit) -> Answer:
        """Show a part of the log, newest first, and its head."""
        state = visit.state_of(AuditState)
        trouble, next_page = "", ""
        events: Iterable[AuditEvent] = ()
        try:
            page = self._audit.list(visit.call, self.query(visit, state), 0, state.page)
            events, next_page = page.items, page.next_page_token
        except FieldInvalid as error:
            trouble = sentence(error.description)
        names = self._names(visit, events)
        seq, newest = self._audit.head(visit.call)
        response = self._pages.show(
            "audit.html",
            visit,
            status=400 if trouble else 200,
            area="audit",
            account=self._accounts.get(visit.call, visit.scope.only).name,
            audit=state,
            lines=[log_line(event, names) for event in events],
            trouble=trouble,
            actions=ACTION_WORDS,
            is_filtered=bool(state.but(account="").pairs),
            next_page=replace(state, page=next_page) if next_page else None,
            head_seq=seq,
            head_hash=newest.hex(),
        )
        return Answer(response)

    def query(self, visit: Visit, state: AuditState) -> AuditQuery:
        """Return which events a URL asks for.

        Raises:
            FieldInvalid: It cannot be understood.
        """
        query = AuditQuery(
            scope=visit.scope,
            actor_id=self._id_of(visit, "actor", state.actor),
            target_id=self._id_of(visit, "target", state.target),
        )
        if state.action:
            action = AuditAction.__members__.get(state.action, AuditAction.UNSPECIFIED)
            if action is AuditAction.UNSPECIFIED:
                raise FieldInvalid("action", "there is no such action")
            query = replace(query, actions=(action,))
        if state.after:
            # The bounds are exclusive, and a day counts with all its moments.
            query = replace(query, after=after(_end_of("after", state.after), -DAY - 1))
        if state.before:
            query = replace(query, before=_end_of("before", state.before))
        return query

    def _id_of(self, visit: Visit, field: str, text: str) -> str:
        """Return the id that somebody means, who may have typed an address instead."""
        wanted = validators.contained(field, text.strip())
        if "@" not in wanted:
            return wanted
        user = self._users.by_email(visit.call, visit.scope, wanted.lower())
        return NOBODY if user is None else user.id

    def _names(self, visit: Visit, events: Iterable[AuditEvent]) -> Mapping[str, str]:
        """Return what the keys and users that events are about are called now."""
        wanted = {(event.target_type, event.target_id) for event in events}
        names = {}
        for kind, target in sorted(wanted):
            try:
                if kind is AuditTargetType.API_KEY:
                    names[target] = self._keys.get(visit.call, target).name
                elif kind is AuditTargetType.USER:
                    names[target] = self._users.get(visit.call, target).email
            except (FieldInvalid, ResourceNotFound):  # pruned, or of another account
                continue
        return names


def _end_of(field: str, day: str) -> Micros:
    end = times.end_of_day(day)
    if end is None:
        raise FieldInvalid(field, "a day is needed, such as 2030-12-31")
    return end
