"""The pages that change a key: edit, rotate, end its old secret, disable, enable."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from starlette.responses import RedirectResponse

from keybearer._wire.enums import ApiKeyState
from keybearer_service.console import links, times
from keybearer_service.console.forms import (
    OVERLAPS,
    EditForm,
    FormErrors,
    RotateForm,
    errors_of,
    labels_text,
)
from keybearer_service.console.key_list import KeyList
from keybearer_service.console.key_texts import ROLE_WORDS, is_used_lately, reason_words, row_of
from keybearer_service.console.problems import Problem
from keybearer_service.console.visits import Answer, Visit
from keybearer_service.console.ways_in import WaysIn
from keybearer_service.domain.clock import Clock, Micros, after
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import (
    EtagMismatch,
    FieldInvalid,
    KeyExpired,
    KeyRevoked,
    ReplayImpossible,
    RequestIdReused,
)
from keybearer_service.domain.model import ApiKey
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.keys import KeyManager

_LIVE: Final = (ApiKeyState.ACTIVE, ApiKeyState.DISABLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A change that asks for nothing but a yes."""

    change: str
    """As `change_key_link` names it."""
    done: str
    """What the details say afterwards."""
    title: str
    """Before the name of the key."""
    button: str
    consequence: str
    is_dangerous: bool
    states: tuple[ApiKeyState, ...]
    """The states in which it means something."""


SWITCHES: Final = {
    one.change: one
    for one in (
        Switch(
            change="disable",
            done="disabled",
            title="Disable",
            button="Disable",
            consequence="Every program that uses this key is refused at once, until it is enabled "
            "again.",
            is_dangerous=True,
            states=(ApiKeyState.ACTIVE,),
        ),
        Switch(
            change="enable",
            done="enabled",
            title="Enable",
            button="Enable",
            consequence="Every program that has its secret is accepted again at once.",
            is_dangerous=False,
            states=(ApiKeyState.DISABLED,),
        ),
        Switch(
            change="end-old-secret",
            done="ended",
            title="End the old secret of",
            button="End the old secret",
            consequence="Every program that still uses the old secret is refused at once. The new "
            "one stays as it is.",
            is_dangerous=True,
            states=_LIVE,
        ),
    )
}


class KeyChangePages:
    """The views of changes. They call use cases, and nothing else."""

    def __init__(
        self,
        key_list: KeyList,
        keys: KeyManager,
        ways_in: WaysIn,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._list = key_list
        self._keys = keys
        self._ways_in = ways_in
        self._clock = clock
        self._entropy = entropy
        self._apply: Mapping[str, Callable[[CallContext, str], ApiKey]] = {
            "disable": keys.disable,
            "enable": keys.enable,
            "end-old-secret": keys.end_overlap,
        }

    # --- edit -------------------------------------------------------------------------------------

    def editing(self, visit: Visit) -> Answer:
        """Show the form that changes a key."""
        return self._edit_form(visit, EditForm.of(self._list.key(visit)))

    def edit(self, visit: Visit) -> Answer:
        """Change a key, and show it."""
        form = EditForm.read(visit.form)
        key = self._list.key(visit)
        try:
            self._keys.update(visit.call, key.id, form.update())
        except FormErrors as error:
            return self._edit_form(visit, form, errors=error.errors, status=400)
        except FieldInvalid as error:
            return self._edit_form(visit, form, errors=errors_of(error), status=400)
        except EtagMismatch:
            theirs = self._list.key(visit)
            # Without a difference it is this very form, sent twice.
            if _differences(form, theirs):
                return self._edit_form(visit, form, theirs=theirs, status=409)
        except (KeyRevoked, KeyExpired):
            # It ended meanwhile; the page says so.
            return self._edit_form(visit, form, status=409)
        return self._done(visit, "edited")

    def edit_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show the form with all that was typed, when it could not be carried out."""
        return self._edit_form(visit, EditForm.read(visit.form), problem=problem)

    def _edit_form(
        self,
        visit: Visit,
        form: EditForm,
        *,
        errors: Mapping[str, str] | None = None,
        theirs: ApiKey | None = None,
        problem: Problem | None = None,
        status: int = 200,
    ) -> Answer:
        key = self._list.key_after(visit, problem)
        return self._list.above(
            "edit.html",
            visit,
            status=status,
            problem=problem,
            key=key,
            key_id=visit.key_id,
            form=form,
            etag=form.etag if theirs is None else theirs.etag,
            errors=errors or {},
            changed_at=None if theirs is None else theirs.update_time,
            differences={} if theirs is None else _differences(form, theirs),
            is_revoked=key is not None and key.revoke_time is not None,
            leaves_nobody=key is not None and self._ways_in.none_without_keys([key]),
            is_expired=key is not None and key.state_at(self._clock.now()) is ApiKeyState.EXPIRED,
            reason="" if key is None else reason_words(key),
            roles=ROLE_WORDS,
        )

    # --- rotate -----------------------------------------------------------------------------------

    def rotating(self, visit: Visit) -> Answer:
        """Show the form that gives a key a new secret."""
        return self._rotate_form(visit, RotateForm.fresh(self._entropy))

    def rotate(self, visit: Visit) -> Answer:
        """Give a key a new secret, and show it, this once."""
        form = RotateForm.read(visit.form)
        key = self._list.key(visit)
        try:
            issued = self._keys.rotate(
                visit.call, key.id, form.overlap_micros(), form.idempotency_key(key.id)
            )
        except FormErrors as error:
            return self._rotate_form(visit, form, errors=error.errors, status=400)
        except (KeyRevoked, KeyExpired):
            return self._rotate_form(visit, form, status=409)
        except (ReplayImpossible, RequestIdReused) as error:
            return self._rotated_before(visit, form, is_other=isinstance(error, RequestIdReused))
        return self._list.with_secret(visit, key=issued.key, token=issued.token)

    def rotate_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show the form as it was, when it could not be carried out."""
        return self._rotate_form(visit, RotateForm.read(visit.form), problem=problem)

    def _rotated_before(self, visit: Visit, form: RotateForm, *, is_other: bool) -> Answer:
        made = self._keys.made_before(visit.call, form.request_id)
        return self._list.above(
            "rotated.html",
            visit,
            status=409,
            form=form,
            key=self._list.key(visit),
            next_attempt=made.attempt + 1 if made and made.is_reissuable and not is_other else 0,
            is_other=is_other,
        )

    def _rotate_form(
        self,
        visit: Visit,
        form: RotateForm,
        *,
        errors: Mapping[str, str] | None = None,
        problem: Problem | None = None,
        status: int = 200,
    ) -> Answer:
        now = self._clock.now()
        key = self._list.key_after(visit, problem)
        return self._list.above(
            "rotate.html",
            visit,
            status=status,
            problem=problem,
            key=key,
            key_id=visit.key_id,
            is_over=key is not None and key.state_at(now) not in _LIVE,
            status_word="" if key is None else row_of(key, now).status.lower(),
            is_own=key is not None and key.id == visit.call.identity.key_id,
            is_used_lately=key is not None and is_used_lately(key, now),
            overlaps=key is not None and key.overlaps_at(now),
            form=form,
            errors=errors or {},
            choices={value: words for value, (words, _) in OVERLAPS.items()},
        )

    # --- disable, enable, end the old secret ------------------------------------------------------

    def switching(self, change: str, visit: Visit) -> Answer:
        """Ask whether a key is to be switched, as one of SWITCHES says."""
        return self._switch_form(SWITCHES[change], visit)

    def switch(self, change: str, visit: Visit) -> Answer:
        """Switch a key, and show it; one that is so already is shown too."""
        switch = SWITCHES[change]
        key = self._list.key(visit)
        try:
            self._apply[change](visit.call, key.id)
        except KeyRevoked:
            return self._switch_form(switch, visit, status=409)
        return self._done(visit, switch.done)

    def switch_again(self, change: str, visit: Visit, problem: Problem) -> Answer:
        """Ask once more, when it could not be carried out."""
        return self._switch_form(SWITCHES[change], visit, problem=problem)

    def _switch_form(
        self, switch: Switch, visit: Visit, *, problem: Problem | None = None, status: int = 200
    ) -> Answer:
        now = self._clock.now()
        key = self._list.key_after(visit, problem)
        means_something = key is None or (
            key.state_at(now) in switch.states
            and (switch.change != "end-old-secret" or key.overlaps_at(now))
        )
        return self._list.above(
            "switch.html",
            visit,
            status=status,
            problem=problem,
            key=key,
            key_id=visit.key_id,
            switch=switch,
            status_word="" if key is None else row_of(key, now).status.lower(),
            means_something=means_something,
            leaves_nobody=key is not None
            and switch.change == "disable"
            and self._ways_in.none_without_keys([key]),
            is_used_lately=key is not None and is_used_lately(key, now),
            is_own=key is not None and key.id == visit.call.identity.key_id,
        )

    # --- what all need ----------------------------------------------------------------------------

    def _done(self, visit: Visit, done: str) -> Answer:
        target = links.key_link(visit.key_id, visit.state, done=done)
        return Answer(RedirectResponse(target, 303))


def _differences(form: EditForm, theirs: ApiKey) -> Mapping[str, str]:
    """Return what a key has where a form says something else, by the words of the form.

    Args:
        form: A form without errors.
        theirs: The key.
    """
    mine, shown = form.update(), EditForm.of(theirs)
    texts = {
        "Name": (mine.settings["name"], shown.name),
        "Description": (mine.settings["description"], shown.description),
        "Role": (ROLE_WORDS[mine.role], ROLE_WORDS[theirs.role]),
        "Scopes": (" ".join(mine.scopes), shown.scopes),
        "Labels": (labels_text(mine.settings["labels"]), shown.labels),
    }
    if mine.expiration is not None:
        # A span is counted from when the key was changed: by this very form, if it was sent twice.
        end = mine.expiration.at
        if mine.expiration.ttl is not None:
            end = after(theirs.update_time, mine.expiration.ttl)
        texts["Expires"] = (_expiry(end), _expiry(theirs.expire_time))
    return {name: there for name, (here, there) in texts.items() if here != there}


def _expiry(moment: Micros | None) -> str:
    return "Never" if moment is None else times.full(moment)
