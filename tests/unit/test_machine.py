"""Users, keys and time against a small model, step by step.

After every step only the rows that the step was about may have changed, with as many audit events
and revisions as it is worth (the bystander rule), and every token that was ever handed out must
have the outcome that the model says.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from backends import dump_database
from fakes import FakeClock, SeededEntropy
from harness import initialise
from keybearer._wire.enums import Outcome, RevocationReason, UserType
from keybearer.access import AccessRule, Role
from keybearer.models import Presented
from keybearer_service.container import Container, open_container
from keybearer_service.domain.clock import HOUR, MINUTE
from keybearer_service.domain.errors import KeyExpired, KeyRevoked, ServiceError
from keybearer_service.offline import audit as offline_audit
from keybearer_service.usecases.access import authorize
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.issuing import Expiration, NewKey
from keybearer_service.usecases.keys import KeyUpdate
from keybearer_service.usecases.users import NewUser, UserUpdate
from keybearer_service.validation.validator import Question
from samples import EVERYWHERE

SHORT = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(SHORT, max_examples=100, stateful_step_count=60)

T = TypeVar("T")
ROLES = st.sampled_from([Role.VALIDATOR, Role.DEVELOPER, Role.ADMIN])
USAGE = {"last_used_time", "use_count", "secret_used", "old_secret_last_used_time"}


class Waiting:
    """A caller that waits for its answer."""

    peer = "127.0.0.1"
    is_alive = True
    remaining_s = None


@dataclass
class ModelKey:
    """What the model knows of a key."""

    owner: str
    creator: str
    role: Role
    expire_time: int | None
    tokens: dict[str, int]
    """Every token there ever was, with its version."""
    version: int = 1
    old_version: int = 0
    overlap_end: int = 0
    disabled: bool = False
    reason: RevocationReason | None = None


@dataclass
class Model:
    """What there is to be."""

    roles: dict[str, Role] = field(default_factory=dict)
    """Of live users."""
    all_roles: dict[str, Role] = field(default_factory=dict)
    """Of deleted ones too."""
    keys: dict[str, ModelKey] = field(default_factory=dict)

    def outcome(self, key: ModelKey, token: str, now: int, required: Role) -> Outcome:
        """Return what a token is worth."""
        version = key.tokens[token]
        is_old = version == key.old_version and now < key.overlap_end
        if version != key.version and not is_old:
            return Outcome.NOT_FOUND
        if key.reason is not None:
            return Outcome.REVOKED
        if key.expire_time is not None and now >= key.expire_time:
            return Outcome.EXPIRED
        if key.disabled:
            return Outcome.DISABLED
        effective = min(key.role, self.all_roles[key.owner])
        return Outcome.ROLE_INSUFFICIENT if effective < required else Outcome.VALID


class Machine(RuleBasedStateMachine):
    """The service's use cases, in process, over a real store."""

    @initialize(seed=st.integers(0, 2**32 - 1))
    def begin(self, seed: int) -> None:
        """Make an installation."""
        self._directory = Path(tempfile.mkdtemp(prefix="machine"))
        self.clock = FakeClock()
        entropy = SeededEntropy(seed)
        data_dir, created = initialise(self._directory / "data", self.clock, entropy)
        self.database = data_dir.database
        self.container: Container = open_container(data_dir, self.clock, entropy)
        self.model = Model()
        self.chief = created.user.id
        self.model.roles[self.chief] = self.model.all_roles[self.chief] = Role.ADMIN
        self.model.keys[created.issued.key.id] = ModelKey(
            self.chief, self.chief, Role.ADMIN, None, {created.issued.token: 1}
        )
        self.chief_token = created.issued.token
        self.users_made = 0

    def teardown(self) -> None:
        """Close and remove it."""
        if hasattr(self, "container"):
            audit_key = self.container.keyring.audit_key
            report = offline_audit.check(self.container.store, audit_key)
            self.container.close()
            shutil.rmtree(self._directory)
            assert report.findings == []

    # --- helpers ----------------------------------------------------------------------------------

    def _call(self, token: str) -> CallContext:
        call = CallContext("/test", AccessRule(role=Role.ADMIN), Waiting(), lambda: "request")
        call.caller = self.container.validator.authenticate(Presented(token))
        return call

    def _dump(self) -> dict[str, Any]:
        self.container.usage.flush()
        tables: dict[str, Any] = dump_database(self.database)
        for row in tables["api_keys"]:
            for column in USAGE:
                del row[column]
        return tables

    def _step(
        self,
        do: Callable[[], T],
        *,
        changes: set[str],
        events: int = 1,
        alters_answers: bool = True,
    ) -> T:
        """Do one thing, and check that nobody else was touched."""
        before = self._dump()
        answer = do()
        after = self._dump()
        for table in ("accounts", "users", "api_keys", "peppers"):
            old = {row["id"]: row for row in before[table]}
            new = {row["id"]: row for row in after[table]}
            touched = {one for one in old.keys() | new.keys() if old.get(one) != new.get(one)}
            assert touched <= changes | (new.keys() - old.keys() if "new" in changes else set())
        told = after["audit_events"][len(before["audit_events"]) :]
        assert after["audit_events"][: len(before["audit_events"])] == before["audit_events"]
        assert len(told) == events
        revisions = after["installation"][0]["revision"] - before["installation"][0]["revision"]
        assert revisions >= (events if alters_answers else 0)
        assert not revisions or events
        assert len(after["changes"]) - len(before["changes"]) == revisions
        return answer

    def _refused(self, do: Callable[[], object], error: type[ServiceError]) -> None:
        """Do what must be refused, and check that nothing at all changed."""
        before = self._dump()
        with pytest.raises(error):
            do()
        assert self._dump() == before

    def _admins(self) -> list[str]:
        now = self.clock.now()
        return sorted(
            token
            for key in self.model.keys.values()
            for token in key.tokens
            if self.model.outcome(key, token, now, Role.ADMIN) is Outcome.VALID
        )

    def _key(self, data: st.DataObject) -> tuple[str, ModelKey]:
        others = sorted(
            key_id for key_id, key in self.model.keys.items() if self.chief_token not in key.tokens
        )
        key_id = data.draw(st.sampled_from(others))
        return key_id, self.model.keys[key_id]

    def _has_keys(self) -> bool:
        return len(self.model.keys) > 1

    def _has_users(self) -> bool:
        return len(self.model.roles) > 1

    def _user(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.model.roles.keys() - {self.chief})))

    def _caller(self, data: st.DataObject) -> CallContext:
        return self._call(data.draw(st.sampled_from(self._admins())))

    # --- rules ------------------------------------------------------------------------------------

    @rule(span=st.sampled_from([1, MINUTE, HOUR, 30 * HOUR]))
    def wait(self, span: int) -> None:
        """Time passes."""
        self.clock.advance(span)

    @rule(data=st.data(), role=ROLES)
    def create_user(self, data: st.DataObject, role: Role) -> None:
        """A user of any role."""
        self.users_made += 1
        call = self._caller(data)
        new = NewUser(
            email=f"u{self.users_made}@example.com",
            display_name="U",
            role=role,
            type=UserType.PERSON,
        )
        user = self._step(
            lambda: self.container.users.create(call, authorize(call, ""), new),
            changes={"new"},
            alters_answers=False,  # nobody's token is worth more or less by it
        )
        self.model.roles[user.id] = self.model.all_roles[user.id] = role

    @precondition(lambda self: self._has_users())
    @rule(data=st.data(), role=ROLES)
    def set_role(self, data: st.DataObject, role: Role) -> None:
        """A promotion or a demotion."""
        user_id = self._user(data)
        call = self._caller(data)
        update = UserUpdate(paths=frozenset({"role"}), role=role)
        same = self.model.roles[user_id] is role
        self._step(
            lambda: self.container.users.update(call, user_id, update),
            changes={user_id},
            events=0 if same else 1,
        )
        self.model.roles[user_id] = self.model.all_roles[user_id] = role

    @precondition(lambda self: self._has_users())
    @rule(data=st.data(), revoke_created=st.booleans())
    def delete_user(self, data: st.DataObject, *, revoke_created: bool) -> None:
        """A deletion, with or without the keys the user made for others."""
        user_id = self._user(data)
        call = self._call(self.chief_token)
        live = {key_id: key for key_id, key in self.model.keys.items() if key.reason is None}
        owned = {key_id for key_id, key in live.items() if key.owner == user_id}
        made = {
            key_id
            for key_id, key in live.items()
            if key.creator == user_id and key.owner != user_id
        }
        deletion = self._step(
            lambda: self.container.users.delete(
                call, user_id, validate_only=False, revoke_created=revoke_created
            ),
            changes={user_id} | owned | (made if revoke_created else set()),
        )
        assert set(deletion.revoked.ids) == owned | (made if revoke_created else set())
        assert set(deletion.created_for_others.ids) == made
        for key_id in owned:
            self.model.keys[key_id].reason = RevocationReason.OWNER_DELETED
        for key_id in made if revoke_created else ():
            self.model.keys[key_id].reason = RevocationReason.CREATOR_DELETED
        del self.model.roles[user_id]

    @rule(data=st.data(), role=ROLES, life=st.sampled_from([None, MINUTE, 2 * HOUR]))
    def create_key(self, data: st.DataObject, role: Role, life: int | None) -> None:
        """A key of any role, for any live user, by any administrator."""
        owner = data.draw(st.sampled_from(sorted(self.model.roles)))
        call = self._caller(data)
        new = NewKey(name="k", role=role, expiration=Expiration(ttl=life), owner_id=owner)
        issued = self._step(
            lambda: self.container.keys.create(call, authorize(call, ""), new, None),
            changes={"new"},
        )
        self.model.keys[issued.key.id] = ModelKey(
            owner,
            call.identity.owner_id,
            role,
            None if life is None else self.clock.now() + life,
            {issued.token: 1},
        )

    @precondition(lambda self: self._has_keys())
    @rule(data=st.data(), disabled=st.booleans())
    def switch(self, data: st.DataObject, *, disabled: bool) -> None:
        """A key is switched off or on."""
        key_id, key = self._key(data)
        call = self._call(self.chief_token)
        manager = self.container.keys

        def do() -> object:
            return manager.disable(call, key_id) if disabled else manager.enable(call, key_id)

        if key.reason is not None:
            self._refused(do, KeyRevoked)
            return
        self._step(do, changes={key_id}, events=int(key.disabled != disabled))
        key.disabled = disabled

    @precondition(lambda self: self._has_keys())
    @rule(data=st.data(), role=ROLES)
    def grant(self, data: st.DataObject, role: Role) -> None:
        """A key is granted another role."""
        key_id, key = self._key(data)
        call = self._call(self.chief_token)
        update = KeyUpdate(paths=frozenset({"role"}), role=role)

        def do() -> object:
            return self.container.keys.update(call, key_id, update)

        if key.reason is not None:
            self._refused(do, KeyRevoked)
            return
        self._step(do, changes={key_id}, events=int(key.role is not role))
        key.role = role

    @precondition(lambda self: self._has_keys())
    @rule(data=st.data(), overlap=st.sampled_from([0, MINUTE, 3 * HOUR]))
    def rotate(self, data: st.DataObject, overlap: int) -> None:
        """A key gets a new secret, with or without an overlap."""
        key_id, key = self._key(data)
        call = self._call(self.chief_token)
        now = self.clock.now()

        if key.reason is not None or (key.expire_time is not None and now >= key.expire_time):
            error = KeyExpired if key.reason is None else KeyRevoked
            self._refused(lambda: self.container.keys.rotate(call, key_id, overlap, None), error)
            return
        issued = self._step(
            lambda: self.container.keys.rotate(call, key_id, overlap, None), changes={key_id}
        )
        key.old_version, key.version = key.version, key.version + 1
        key.overlap_end = min(now + overlap, key.expire_time or now + overlap)
        key.tokens[issued.token] = key.version

    @precondition(lambda self: self._has_keys())
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        """A key is killed; a second time nothing happens."""
        key_id, key = self._key(data)
        call = self._call(self.chief_token)
        revoked = self._step(
            lambda: self.container.revoker.revoke(call, key_id, RevocationReason.LOST, ""),
            changes={key_id},
            events=int(key.reason is None),
        )
        key.reason = key.reason or RevocationReason.LOST
        assert revoked.revocation_reason is key.reason

    @precondition(lambda self: self._has_keys())
    @rule(data=st.data())
    def revoke_by_holding(self, data: st.DataObject) -> None:
        """Whoever holds a token ends what it opens, and nothing else."""
        key_id, key = self._key(data)
        token = data.draw(st.sampled_from(sorted(key.tokens)))
        call = CallContext("/test", AccessRule(public=True), Waiting(), lambda: "request")
        version = key.tokens[token]
        is_old = version == key.old_version and self.clock.now() < key.overlap_end
        opens = key.reason is None and (version == key.version or is_old)
        self._step(
            lambda: self.container.revoker.revoke_token(call, token),
            changes={key_id},
            events=int(opens),
        )
        if opens and is_old:
            key.overlap_end = 0
        elif opens:
            key.reason = RevocationReason.REPORTED_BY_HOLDER

    # --- what always holds ------------------------------------------------------------------------

    @invariant()
    def every_token_is_worth_what_the_model_says(self) -> None:
        """Every one that was ever handed out, for every required role."""
        if not hasattr(self, "container"):
            return
        now = self.clock.now()
        for key_id, key in self.model.keys.items():
            for token in key.tokens:
                for required in (Role.UNSPECIFIED, Role.ADMIN):
                    question = Question(Presented(token), EVERYWHERE, AccessRule(role=required))
                    verdict = self.container.validator.judge(question)
                    assert verdict.outcome is self.model.outcome(key, token, now, required)
                    assert (verdict.match is None) == (verdict.outcome is Outcome.NOT_FOUND)
                    assert verdict.match is None or verdict.match.record.key_id == key_id


def test_the_service_does_what_the_model_says() -> None:
    """A few hundred steps a run."""
    run_state_machine_as_test(Machine, settings=SHORT)


@pytest.mark.slow
def test_the_service_does_what_the_model_says_for_long() -> None:
    """Thousands of steps."""
    run_state_machine_as_test(Machine, settings=LONG)
