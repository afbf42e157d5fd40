"""RevokeApiKeys: several keys in one transaction, each with its own result."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fakes import FakeClock
from harness import Service, Stubs, refused, store_of
from keybearer.access import Role
from keybearer.v1 import api_key_service_pb2
from keybearer_service.domain.clock import DAY, SECOND
from keybearer_service.offline import audit as offline_audit
from keybearer_service.storage import Foreseen, StoreFullError
from keybearer_service.usecases.issuing import NEVER_EXPIRES, NewKey

NOTHING = "0000000000000000"


def _moment(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / SECOND, UTC)


def results_of(answer: api_key_service_pb2.RevokeApiKeysResponse) -> list[tuple[str, str]]:
    """Return each id with what became of it."""
    prefix = "API_KEY_REVOCATION_RESULT_"
    name = api_key_service_pb2.ApiKeyRevocationResult.Name
    return [(one.id, name(one.result).removeprefix(prefix)) for one in answer.revocations]


def test_each_id_has_its_own_result(service: Service, admin: Stubs) -> None:
    """Revoked, revoked before, of nothing, of another account; one that is named twice is one."""
    first, second, dead = (admin.create_key(name=name) for name in ("a", "b", "c"))
    admin.revoke(dead.api_key.id, "REVOCATION_REASON_COMPROMISED")
    tenant = service.tenant()
    own = tenant.stubs.create_key(name="own")
    ids = [first.api_key.id, NOTHING, dead.api_key.id, second.api_key.id, first.api_key.id]
    answer = admin.revoke_keys(*ids, note="all of them")
    assert results_of(answer) == [
        (first.api_key.id, "REVOKED"),
        (NOTHING, "NOT_FOUND"),
        (dead.api_key.id, "ALREADY_REVOKED"),
        (second.api_key.id, "REVOKED"),
    ]
    assert [one.name for one in answer.revocations] == ["a", "", "c", "b"]
    assert answer.revocations[0].owner_email == "admin@example.com"
    assert admin.key(second.api_key.id).revocation_note == "all of them"
    assert admin.key(dead.api_key.id).revocation_reason == 2
    assert admin.outcome(first.token) == admin.outcome(second.token) == "REVOKED"
    foreign = tenant.stubs.revoke_keys(service.admin_key_id, own.api_key.id)
    assert [result for _, result in results_of(foreign)] == ["NOT_FOUND", "REVOKED"]
    assert admin.who_am_i().valid


def test_each_key_has_its_event_and_the_chain_is_whole(service: Service, admin: Stubs) -> None:
    """As if each was revoked by itself."""
    ids = [admin.create_key().api_key.id for _ in range(3)]
    admin.revoke_keys(*ids, note="n")
    events = admin.events(actions=["AUDIT_ACTION_API_KEY_REVOKED"])
    assert [one.target.id for one in events] == ids[::-1]
    assert {one.request_id for one in events} == {events[0].request_id}
    changes = {change.field: change.after for change in events[0].changes}
    assert changes == {"revocation_reason": "LOST", "revocation_note": "n", "state": "REVOKED"}
    container = service.app.container
    report, findings = offline_audit.verify_audit(
        container.store, container.keyring.audit_key, None
    )
    assert (report.broken_seq, findings) == (None, [])


def test_trying_out_revokes_nothing(admin: Stubs) -> None:
    """It answers what would be revoked."""
    made = admin.create_key(name="tried")
    answer = admin.revoke_keys(made.api_key.id, NOTHING, validate_only=True)
    assert [result for _, result in results_of(answer)] == ["REVOKED", "NOT_FOUND"]
    answer = admin.revoke_keys(filter={"name_contains": "TRIED"}, validate_only=True)
    assert results_of(answer) == [(made.api_key.id, "REVOKED")]
    assert admin.outcome(made.token) == "VALID"
    assert not admin.events(actions=["AUDIT_ACTION_API_KEY_REVOKED"])


def test_a_store_without_room_revokes_none_of_them(service: Service, admin: Stubs) -> None:
    """All of one call stand and fall together."""
    made = [admin.create_key() for _ in range(3)]
    store = store_of(service.only_node)
    write = store.write

    class Failing:
        def __init__(self, foreseen: Foreseen) -> None:
            self._open = write(foreseen)

        def __enter__(self) -> Any:
            self._tx = self._open.__enter__()
            return self._tx

        def __exit__(self, *_: object) -> None:
            error = StoreFullError("no room")
            self._open.__exit__(StoreFullError, error, None)
            raise error

    with store.replacing(write=Failing):
        refusal = refused(lambda: admin.revoke_keys(*(one.api_key.id for one in made)))
    assert refusal.reason == "STORE_FULL"
    assert {admin.outcome(one.token) for one in made} == {"VALID"}


FILTERS: dict[str, tuple[Callable[[dict[str, str], FakeClock], dict[str, Any]], set[str]]] = {
    "a name": (lambda ids, clock: {"name_contains": "OLD"}, {"old used", "old expired", "old off"}),
    "an owner": (lambda ids, clock: {"owner_id": ids["bot"]}, {"of the bot"}),
    "a state": (lambda ids, clock: {"states": ["API_KEY_STATE_DISABLED"]}, {"old off"}),
    "an end": (
        lambda ids, clock: {"expires_before": _moment(clock.now() + 10 * DAY)},
        {"old expired", "ends soon"},
    ),
    "no use": (
        lambda ids, clock: {
            "unused_since": _moment(clock.now() - DAY),
            "states": ["API_KEY_STATE_ACTIVE"],
            "name_contains": " ",
        },
        {"of the bot", "ends soon"},
    ),
    "what is revoked": (lambda ids, clock: {"states": ["API_KEY_STATE_REVOKED"]}, set()),
}


@pytest.mark.parametrize("case", sorted(FILTERS))
def test_a_filter_revokes_the_keys_that_it_matches(
    service: Service, admin: Stubs, clock: FakeClock, case: str
) -> None:
    """And no others; keys that are revoked are only named when they are asked for."""
    bot = admin.create_user("bot@example.com", role="ROLE_DEVELOPER")
    made = {
        "old used": admin.create_key(name="old used"),
        "old expired": admin.create_key(name="old expired", ttl=timedelta(days=1)),
        "old off": admin.create_key(name="old off"),
        "of the bot": admin.create_key(name="of the bot", owner_id=bot.id),
        "ends soon": admin.create_key(name="ends soon", ttl=timedelta(days=9)),
        "dead": admin.create_key(name="dead"),
    }
    admin.disable_key(made["old off"].api_key.id)
    admin.revoke(made["dead"].api_key.id)
    tenant = service.tenant().stubs.create_key(name="old of a tenant")
    clock.advance(2 * DAY)
    admin.validate(made["old used"].token)
    service.flush_uses()
    wanted, expected = FILTERS[case]
    answer = admin.revoke_keys(filter=wanted({"bot": bot.id}, clock))
    assert answer.next_page_token == ""
    revoked = {name for name, one in made.items() if admin.key(one.api_key.id).state == 4}
    assert revoked == expected | {"dead"}
    named = {one.name for one in answer.revocations}
    assert named == (expected or {"dead"})
    assert admin.outcome(tenant.token, account_id="-") == "VALID"


def test_a_filter_goes_on_where_the_call_before_ended(service: Service, admin: Stubs) -> None:
    """At most a thousand a call; a token of another filter is refused."""
    container = service.app.container
    with container.mutations.begin_local() as mutation:
        owner = mutation.tx.user(mutation.scope, service.admin_user_id)
        assert owner is not None
        for number in range(1005):
            new = NewKey(name=f"nr {number:04}", role=Role.DEVELOPER, expiration=NEVER_EXPIRES)
            container.issuer.issue(mutation, new, owner=owner, created_by=owner.id)
    wanted = {"name_contains": "NR"}
    first = admin.revoke_keys(filter=wanted)
    assert len(first.revocations) == 1000
    refusal = refused(
        lambda: admin.revoke_keys(filter={"name_contains": "x"}, page_token=first.next_page_token)
    )
    assert refusal.reason == "FIELD_INVALID"
    second = admin.revoke_keys(filter=wanted, page_token=first.next_page_token)
    assert second.next_page_token == ""
    names = [one.name for answer in (first, second) for one in answer.revocations]
    assert sorted(names) == [f"nr {number:04}" for number in range(1005)]


def test_a_key_that_is_used_meanwhile_is_not_revoked_for_not_being_used(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """The filter holds inside the change, not only when it was looked at."""
    made = admin.create_key(name="unused")
    clock.advance(2 * DAY)
    store = store_of(service.only_node)
    write = store.write

    admin.validate(made.token)
    unused = {"unused_since": _moment(clock.now() - DAY), "name_contains": "unused"}

    pending = [True]

    def flushed_first(foreseen: Foreseen) -> Any:
        if pending:
            pending.clear()
            service.flush_uses()
        return write(foreseen)

    with store.replacing(write=flushed_first):
        answer = admin.revoke_keys(filter=unused)
    assert results_of(answer) == []
    assert admin.outcome(made.token) == "VALID"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "ids"),
    "both": ({"ids": ["x"], "filter": {"name_contains": "a"}}, "ids"),
    "an empty id": ({"ids": ["x", ""]}, "ids[1]"),
    "too many": ({"ids": [f"{number:016}" for number in range(1001)]}, "ids"),
    "an empty filter": ({"filter": {}}, "filter"),
    "an account alone": ({"filter": {"account_id": "{own}"}}, "filter"),
    "a state of nothing": ({"filter": {"states": [9]}}, "filter.states[0]"),
    "a control character": ({"filter": {"name_contains": "a\n"}}, "filter.name_contains"),
    "a token with ids": ({"ids": ["x"], "page_token": "x"}, "page_token"),
    "a token of nothing": ({"filter": {"name_contains": "a"}, "page_token": "x"}, "page_token"),
    "no reason": ({"ids": ["x"], "reason": 0}, "reason"),
    "a reason of the service": ({"ids": ["x"], "reason": 5}, "reason"),
    "a long note": ({"ids": ["x"], "note": "n" * 1001}, "note"),
}


def test_bad_input_is_named(service: Service, admin: Stubs) -> None:
    """The field, and nothing is revoked."""
    named = {}
    for case, (fields, _) in BAD.items():
        request = {"reason": "REVOCATION_REASON_LOST", **fields}
        if case == "an account alone":
            request["filter"] = {"account_id": service.account_id}
        ids = request.pop("ids", [])
        refusal = refused(lambda ids=ids, request=request: admin.revoke_keys(*ids, **request))  # type: ignore[misc]
        named[case] = (refusal.reason, refusal.fields)
    assert named == {case: ("FIELD_INVALID", [field]) for case, (_, field) in BAD.items()}
    assert admin.who_am_i().valid
