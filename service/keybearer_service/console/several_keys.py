"""The page that revokes the keys that are ticked in the list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keybearer._wire.enums import RevocationResult
from keybearer_service.console import problems
from keybearer_service.console.forms import FormErrors, RevokeForm
from keybearer_service.console.key_list import KeyList
from keybearer_service.console.key_texts import REASONS, is_used_lately, reason_words, row_of
from keybearer_service.console.problems import Problem
from keybearer_service.console.visits import Answer, Visit
from keybearer_service.console.ways_in import WaysIn
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import FieldInvalid, ResourceNotFound
from keybearer_service.domain.model import ApiKey
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.revoking import KeyRevocation, KeyRevoker


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one key, in words."""

    name: str
    """Empty when there is no such key."""
    words: str
    is_revoked: bool
    """Whether it is, by this or by an earlier revocation."""


class SeveralKeysPages:
    """The views of several keys at once. They call use cases, and nothing else."""

    def __init__(
        self,
        key_list: KeyList,
        keys: KeyManager,
        revoker: KeyRevoker,
        ways_in: WaysIn,
        clock: Clock,
    ) -> None:
        self._list = key_list
        self._keys = keys
        self._revoker = revoker
        self._ways_in = ways_in
        self._clock = clock

    def revoking(self, visit: Visit) -> Answer:
        """Show the form that revokes the ticked keys."""
        return self._form(visit, RevokeForm())

    def revoke(self, visit: Visit) -> Answer:
        """Revoke the ticked keys; show of each what became of it."""
        form = RevokeForm.read(visit.form)
        try:
            revoked = self._revoker.revoke_many(
                visit.call, visit.ticked, *form.revocation(), validate_only=False
            )
        except FormErrors as error:
            return self._form(visit, form, errors=error.errors, status=400)
        except FieldInvalid:  # none is ticked
            return self._form(visit, form, status=400)
        return self._list.above(
            "revoked_keys.html", visit, results=[_result(one) for one in revoked]
        )

    def revoke_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show the form as it was, when it could not be carried out."""
        return self._form(visit, RevokeForm.read(visit.form), problem=problem)

    def _form(
        self,
        visit: Visit,
        form: RevokeForm,
        *,
        errors: Mapping[str, str] | None = None,
        problem: Problem | None = None,
        status: int = 200,
    ) -> Answer:
        now = self._clock.now()
        can_read = problems.can_read(problem)
        found = self._found(visit) if can_read else ()
        keys = [key for key in found if key.revoke_time is None]
        return self._list.above(
            "revoke_keys.html",
            visit,
            status=status,
            problem=problem,
            rows=[row_of(key, now) for key in keys],
            ticked=[key.id for key in keys] if can_read else visit.ticked,
            left_out=len(visit.ticked) - len(keys),
            used_lately=sum(is_used_lately(key, now) for key in keys),
            leaves_nobody=self._ways_in.none_without_keys(keys),
            own=next((key for key in keys if key.id == visit.call.identity.key_id), None),
            form=form,
            errors=errors or {},
            reasons=REASONS,
        )

    def _found(self, visit: Visit) -> Sequence[ApiKey]:
        found = []
        for key_id in dict.fromkeys(visit.ticked):
            try:
                found.append(self._keys.get(visit.call, key_id))
            except (FieldInvalid, ResourceNotFound):
                continue
        return found


def _result(one: KeyRevocation) -> Result:
    if one.key is None:
        return Result(name="", words="There is no such key.", is_revoked=False)
    words = "Revoked."
    if one.result is RevocationResult.ALREADY_REVOKED:
        words = f"It was revoked before: {reason_words(one.key)}."
    return Result(name=one.key.name, words=words, is_revoked=True)
