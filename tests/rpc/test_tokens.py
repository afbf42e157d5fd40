"""TokenService: verdicts, who calls, and what public may do."""

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import grpc
import pytest

from fakes import FakeClock
from harness import Service, Stubs, message, refused
from keybearer.v1 import token_service_pb2
from keybearer_service.domain import token_format
from keybearer_service.domain.clock import DAY, HOUR, SECOND

Verdict = token_service_pb2.ValidateTokenResponse
VALIDATING: dict[str, Callable[[Stubs, dict[str, Any]], Verdict]] = {
    "ValidateToken": lambda stubs, question: stubs.tokens.ValidateToken(
        token_service_pb2.ValidateTokenRequest(**question)
    ),
    "BatchValidateTokens": lambda stubs, question: batch(stubs, [question])[0],
}


def batch(stubs: Stubs, questions: list[dict[str, Any]]) -> list[Verdict]:
    """Ask many at once."""
    request = token_service_pb2.BatchValidateTokensRequest(
        requests=[token_service_pb2.ValidateTokenRequest(**one) for one in questions]
    )
    return list(stubs.tokens.BatchValidateTokens(request).responses)


def name_of(outcome: int) -> str:
    """Name an outcome without its prefix."""
    name = token_service_pb2.ValidationOutcome.Name(outcome)  # type: ignore[arg-type]
    return name.removeprefix("VALIDATION_OUTCOME_")


def cache_for(verdict: Verdict) -> int:
    """Return for how many microseconds a verdict may be reused."""
    return verdict.cache_for.seconds * SECOND + verdict.cache_for.nanos // 1000


@pytest.fixture(params=sorted(VALIDATING))
def ask(request: pytest.FixtureRequest) -> Callable[[Stubs, dict[str, Any]], Verdict]:
    """One question, by each of the two methods."""
    return VALIDATING[request.param]


Ask = Callable[[Stubs, dict[str, Any]], Verdict]


# --- verdicts -------------------------------------------------------------------------------------


def test_a_valid_verdict_tells_the_whole_identity(service: Service, admin: Stubs, ask: Ask) -> None:
    """Every field, from the key, its owner and its account."""
    owner = admin.create_user(
        "bot@example.com", role="ROLE_DEVELOPER", type="USER_TYPE_SERVICE_ACCOUNT"
    )
    made = admin.create_key(
        name="deploy",
        role="ROLE_DEVELOPER",
        owner_id=owner.id,
        scopes=["a.*", "b"],
        labels={"team": "x"},
        ttl=timedelta(hours=1),
    )
    verdict = ask(admin, {"token": made.token})
    expected = Verdict(
        valid=True,
        outcome=token_service_pb2.VALIDATION_OUTCOME_VALID,
        key_id=made.api_key.id,
        key_name="deploy",
        account_id=service.account_id,
        owner_id=owner.id,
        owner_email="bot@example.com",
        owner_type=2,  # type: ignore[arg-type]
        granted_role=2,  # type: ignore[arg-type]
        effective_role=2,  # type: ignore[arg-type]
        scopes=["a.*", "b"],
        labels={"team": "x"},
        revision=admin.who_am_i().revision,
        secret_version=1,
        epoch=verdict.epoch,
    )
    expected.expire_time.CopyFrom(made.api_key.expire_time)
    expected.cache_for.FromSeconds(60)
    assert verdict == expected


def test_a_verdict_names_the_history_that_watchers_hear_of(admin: Stubs) -> None:
    """In a batch it stands once."""
    subscribe = message(token_service_pb2.WatchInvalidationsRequest, subscribe={})
    stream = admin.tokens.WatchInvalidations(iter([subscribe]))
    epoch = next(stream).hello.epoch
    stream.cancel()
    assert epoch
    assert admin.validate(admin.token).epoch == epoch
    request = message(
        token_service_pb2.BatchValidateTokensRequest, requests=[{"token": admin.token}] * 2
    )
    response = admin.tokens.BatchValidateTokens(request)
    assert response.epoch == epoch
    assert [one.epoch for one in response.responses] == ["", ""]


def _revoke(admin: Stubs, key_id: str, clock: FakeClock) -> None:
    admin.revoke(key_id)


def _expire(admin: Stubs, key_id: str, clock: FakeClock) -> None:
    clock.advance(DAY)


def _disable(admin: Stubs, key_id: str, clock: FakeClock) -> None:
    admin.disable_key(key_id)


STEPS: list[tuple[str, Callable[[Stubs, str, FakeClock], None]]] = [
    ("DISABLED", _disable),
    ("EXPIRED", _expire),
    ("REVOKED", _revoke),
]


def test_the_order_of_outcomes_is_the_contracts(admin: Stubs, clock: FakeClock, ask: Ask) -> None:
    """Scopes, role, DISABLED, EXPIRED, REVOKED: each later one wins over those before it."""
    made = admin.create_key(scopes=["a"], ttl=timedelta(days=1))
    question: dict[str, Any] = {"token": made.token}
    assert name_of(ask(admin, question).outcome) == "VALID"
    question["required_scopes"] = ["b"]
    assert name_of(ask(admin, question).outcome) == "SCOPE_INSUFFICIENT"
    question["required_role"] = "ROLE_ADMIN"
    assert name_of(ask(admin, question).outcome) == "ROLE_INSUFFICIENT"
    for outcome, step in STEPS:
        step(admin, made.api_key.id, clock)
        verdict = ask(admin, question)
        assert name_of(verdict.outcome) == outcome
        assert not verdict.valid
        assert verdict.key_id == made.api_key.id


def _wrong_secret(token: str) -> str:
    prefix, key_id, secret = token.split("_")
    other = ("b" if secret[0] == "a" else "a") + secret[1:43]
    return token_format.write(prefix, key_id, other)


NOT_FOUND: dict[str, Callable[[str], str]] = {
    "garbage": lambda token: "garbage",
    "over 512 bytes": lambda token: token + "0" * 500,
    "a checksum that does not fit": lambda token: token[:-1] + ("1" if token[-1] == "0" else "0"),
    "an unknown id": lambda token: token_format.write("kbear1", "0" * 16, "a" * 43),
    "a wrong secret": _wrong_secret,
    "a trailing newline": lambda token: token + "\n",
    "another prefix": lambda token: token_format.write("other1", *token[:-6].split("_")[1:]),
    "another case": str.swapcase,
    "not ASCII": lambda token: token[:-1] + "\u0661",
}


@pytest.mark.parametrize("how", sorted(NOT_FOUND))
@pytest.mark.parametrize("state", ["ACTIVE", *(outcome for outcome, _ in STEPS)])
def test_nothing_is_told_before_the_whole_secret_matched(
    admin: Stubs, clock: FakeClock, ask: Ask, how: str, state: str
) -> None:
    """Whatever state the key is in, all that is not its token answers the same bytes."""
    made = admin.create_key(ttl=timedelta(days=1))
    for outcome, step in STEPS:
        if outcome == state:
            step(admin, made.api_key.id, clock)
    verdict = ask(admin, {"token": NOT_FOUND[how](made.token)})
    assert name_of(verdict.outcome) == "NOT_FOUND"
    for name in ("epoch", "revision", "cache_for"):
        verdict.ClearField(name)
    assert verdict == Verdict(outcome=token_service_pb2.VALIDATION_OUTCOME_NOT_FOUND)


def test_a_dead_secret_of_a_live_key_is_not_found(admin: Stubs, ask: Ask) -> None:
    """As if it had never been one."""
    made = admin.create_key()
    admin.rotate(made.api_key.id)
    assert name_of(ask(admin, {"token": made.token}).outcome) == "NOT_FOUND"


@pytest.mark.parametrize(
    ("required", "outcome"),
    [
        ({}, "VALID"),
        ({"required_role": "ROLE_VALIDATOR"}, "VALID"),
        ({"required_role": "ROLE_DEVELOPER"}, "VALID"),
        ({"required_role": "ROLE_ADMIN"}, "ROLE_INSUFFICIENT"),
        ({"required_scopes": ["a.b"]}, "VALID"),
        ({"required_scopes": ["a.b", "c"]}, "VALID"),
        ({"required_scopes": ["a"]}, "SCOPE_INSUFFICIENT"),
        ({"required_scopes": ["c", "d"]}, "SCOPE_INSUFFICIENT"),
    ],
)
def test_a_question_may_require_role_and_scopes(
    admin: Stubs, ask: Ask, required: dict[str, Any], outcome: str
) -> None:
    """Judged as the interceptors judge them."""
    made = admin.create_key(scopes=["a.*", "c"])
    assert name_of(ask(admin, {"token": made.token, **required}).outcome) == outcome


def test_an_admin_key_meets_every_scope(admin: Stubs, ask: Ask) -> None:
    """Until its owner is no administrator any more: then it has no scope at all."""
    owner = admin.create_user("owner@example.com")
    made = admin.create_key(role="ROLE_ADMIN", owner_id=owner.id)
    question = {"token": made.token, "required_scopes": ["anything"]}
    assert name_of(ask(admin, question).outcome) == "VALID"
    admin.update_user(owner.id, {"role": "ROLE_DEVELOPER"})
    assert name_of(ask(admin, question).outcome) == "SCOPE_INSUFFICIENT"


def test_an_empty_token_alone_is_a_bad_field(admin: Stubs) -> None:
    """Status is about the call: everything else about a token is a verdict."""
    assert refused(lambda: admin.validate("")).fields == ["token"]


@pytest.mark.parametrize(
    ("question", "field"),
    [
        ({"required_role": 4}, "required_role"),
        ({"required_role": -1}, "required_role"),
        ({"required_scopes": ["a.*"]}, "required_scopes[0]"),
        ({"required_scopes": ["a", "*"]}, "required_scopes[1]"),
        ({"required_scopes": [""]}, "required_scopes[0]"),
        ({"required_scopes": [f"s{n}" for n in range(65)]}, "required_scopes"),
    ],
)
def test_a_bad_question_is_named(admin: Stubs, question: dict[str, Any], field: str) -> None:
    """In a batch with the place of its item."""
    assert refused(lambda: admin.validate("x", **question)).fields == [field]
    good: dict[str, Any] = {"token": "x"}
    refusal = refused(lambda: batch(admin, [good, {"token": "x", **question}]))
    assert refusal.fields == [f"requests[1].{field}"]


# --- accounts of a question -----------------------------------------------------------------------


@pytest.mark.parametrize("role", ["ROLE_VALIDATOR", "ROLE_ADMIN"])
def test_the_operators_validators_reach_other_accounts_when_they_ask_for_it(
    service: Service, ask: Ask, role: str
) -> None:
    """By `-` or by the id; without, it is NOT_FOUND, and so it is under another id."""
    tenant = service.tenant()
    caller = service.with_role(role)
    token = tenant.stubs.token
    outcomes = [
        name_of(ask(caller, {"token": token, "account_id": account}).outcome)
        for account in ("", "-", tenant.account_id, service.account_id, "0" * 16)
    ]
    assert outcomes == ["NOT_FOUND", "VALID", "VALID", "NOT_FOUND", "NOT_FOUND"]


@pytest.mark.parametrize("account", ["-", "operator", "0" * 16])
def test_other_accounts_validators_reach_no_other_account(
    service: Service, ask: Ask, account: str
) -> None:
    """Not even by asking, whether it exists or not."""
    tenant = service.tenant()
    account_id = service.account_id if account == "operator" else account
    refusal = refused(lambda: ask(tenant.stubs, {"token": "x", "account_id": account_id}))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "OPERATOR_ONLY")
    own = {"token": tenant.stubs.token, "account_id": tenant.account_id}
    assert ask(tenant.stubs, own).valid


def test_a_developer_does_not_validate(service: Service, ask: Ask) -> None:
    """Trust in a machine is not a rung below a person."""
    refusal = refused(lambda: ask(service.with_role("ROLE_DEVELOPER"), {"token": "x"}))
    assert refusal.reason == "ROLE_INSUFFICIENT"
    assert refusal.metadata == {
        "required_role": "VALIDATOR, ADMIN",
        "effective_role": "DEVELOPER",
    }


# --- how long an answer holds ---------------------------------------------------------------------


@pytest.mark.parametrize("left", [61 * SECOND, 60 * SECOND, 59 * SECOND, 1])
def test_a_positive_answer_is_never_reused_past_the_expiry(
    admin: Stubs, clock: FakeClock, ask: Ask, left: int
) -> None:
    """At most 60 seconds, at most what is left."""
    made = admin.create_key(ttl=timedelta(hours=1))
    clock.advance(HOUR - left)
    assert cache_for(ask(admin, {"token": made.token})) == min(left, 60 * SECOND)


def test_an_old_secrets_answer_is_never_reused_past_its_overlap(admin: Stubs, ask: Ask) -> None:
    """The current one's is not cut short by it."""
    made = admin.create_key()
    rotated = admin.rotate(made.api_key.id, overlap=timedelta(seconds=7))
    old, new = ask(admin, {"token": made.token}), ask(admin, {"token": rotated.token})
    assert (cache_for(old), cache_for(new)) == (7 * SECOND, 60 * SECOND)
    assert (old.secret_version, new.secret_version) == (1, 2)


def test_a_negative_answer_is_reused_for_at_most_a_second(admin: Stubs, ask: Ask) -> None:
    """Of every kind."""
    made = admin.create_key(scopes=["a"])
    for question in (
        {"token": "garbage"},
        {"token": made.token, "required_role": "ROLE_ADMIN"},
        {"token": made.token, "required_scopes": ["b"]},
    ):
        assert 0 < cache_for(ask(admin, question)) <= SECOND
    admin.disable_key(made.api_key.id)
    assert 0 < cache_for(ask(admin, {"token": made.token})) <= SECOND
    admin.revoke(made.api_key.id)
    assert 0 < cache_for(ask(admin, {"token": made.token})) <= SECOND


def test_every_change_that_can_alter_an_answer_moves_the_revision(admin: Stubs) -> None:
    """And each by at least one; use and reading do not."""
    user = admin.create_user("u@example.com")
    made = admin.create_key(owner_id=user.id, ttl=timedelta(days=1))
    key_id = made.api_key.id
    changes: list[Callable[[], object]] = [
        lambda: admin.update_key(key_id, {"role": "ROLE_VALIDATOR"}),
        lambda: admin.update_key(key_id, {"scopes": ["a"]}),
        lambda: admin.update_key(key_id, {"name": "b"}),
        lambda: admin.update_key(key_id, paths=["expiration"], ttl=timedelta(hours=1)),
        lambda: admin.disable_key(key_id),
        lambda: admin.enable_key(key_id),
        lambda: admin.rotate(key_id),
        lambda: admin.update_user(user.id, {"role": "ROLE_DEVELOPER"}),
        lambda: admin.revoke(key_id),
        lambda: admin.delete_user(user.id),
    ]
    for change in changes:
        before = admin.validate(made.token).revision
        change()
        assert admin.validate(made.token).revision > before
    before = admin.validate(made.token).revision
    admin.key(key_id)
    admin.list_keys()
    assert admin.validate(made.token).revision == before


# --- batches --------------------------------------------------------------------------------------


def test_a_batch_answers_in_order_against_one_snapshot(admin: Stubs) -> None:
    """A hundred questions, repeated ones too; empty and over-long items are NOT_FOUND."""
    first, second = admin.create_key(), admin.create_key()
    admin.disable_key(second.api_key.id)
    asked = [first.token, "", second.token, "x" * 600, first.token] * 20
    verdicts = batch(admin, [{"token": token} for token in asked])
    expected = ["VALID", "NOT_FOUND", "DISABLED", "NOT_FOUND", "VALID"] * 20
    assert [name_of(one.outcome) for one in verdicts] == expected
    assert len({one.revision for one in verdicts}) == 1


@pytest.mark.parametrize("size", [0, 101])
def test_a_batch_has_one_to_a_hundred_questions(admin: Stubs, size: int) -> None:
    """More or none is a bad field."""
    assert refused(lambda: batch(admin, [{"token": "x"}] * size)).fields == ["requests"]


def test_a_batch_of_questions_about_other_accounts_is_refused_as_a_whole(service: Service) -> None:
    """One item that asks for too much is a refusal of the call, not of the item."""
    tenant = service.tenant()
    questions = [{"token": "x"}, {"token": "x", "account_id": "-"}]
    assert refused(lambda: batch(tenant.stubs, questions)).reason == "OPERATOR_ONLY"


# --- who calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["ROLE_VALIDATOR", "ROLE_DEVELOPER", "ROLE_ADMIN"])
def test_any_valid_key_may_ask_who_it_is(service: Service, admin: Stubs, role: str) -> None:
    """The fields are those of a verdict about the caller."""
    made = admin.create_key(role=role, labels={"a": "b"})
    me = service.as_token(made.token).who_am_i()
    verdict = admin.validate(made.token)
    for field in verdict.DESCRIPTOR.fields:
        if field.name != "cache_for":
            assert getattr(me, field.name) == getattr(verdict, field.name), field.name
    assert me.is_operator
    assert not me.expires_soon


@pytest.mark.parametrize(("days", "soon"), [(29, True), (30, True), (31, False)])
def test_a_caller_is_told_that_it_expires_soon(
    service: Service, admin: Stubs, days: int, *, soon: bool
) -> None:
    """Within 30 days."""
    made = admin.create_key(ttl=timedelta(days=days))
    assert service.as_token(made.token).who_am_i().expires_soon == soon


def test_a_caller_with_an_old_secret_is_told_until_when(service: Service, admin: Stubs) -> None:
    """So that it can take the new one in time."""
    made = admin.create_key()
    rotated = admin.rotate(made.api_key.id, overlap=timedelta(hours=1))
    old = service.as_token(made.token).who_am_i()
    assert old.overlap_end_time == rotated.api_key.overlap_end_time
    assert old.expires_soon
    assert not service.as_token(rotated.token).who_am_i().HasField("overlap_end_time")


# --- rotating oneself -----------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["ROLE_VALIDATOR", "ROLE_DEVELOPER", "ROLE_ADMIN"])
def test_any_key_renews_its_own_secret(service: Service, admin: Stubs, role: str) -> None:
    """Same id, role, scopes and expiry; without an overlap the caller's secret is dead at once."""
    scopes = [] if role == "ROLE_ADMIN" else ["a"]
    made = admin.create_key(role=role, scopes=scopes, ttl=timedelta(days=1))
    caller = service.as_token(made.token)
    renewed = caller.rotate_self()
    for name in ("id", "role", "scopes", "expire_time", "owner_id", "name"):
        assert getattr(renewed.api_key, name) == getattr(made.api_key, name)
    assert renewed.api_key.secret_version == 2
    assert refused(caller.who_am_i).reason == "CREDENTIALS_INVALID"
    assert service.as_token(renewed.token).who_am_i().valid


def test_a_key_above_its_owners_role_renews_itself_and_gains_nothing(
    service: Service, admin: Stubs
) -> None:
    """The granted role stays, and so does the effective one."""
    owner = admin.create_user("owner@example.com")
    made = admin.create_key(role="ROLE_ADMIN", owner_id=owner.id)
    admin.update_user(owner.id, {"role": "ROLE_DEVELOPER"})
    renewed = service.as_token(made.token).rotate_self()
    assert (renewed.api_key.role, renewed.api_key.effective_role) == (3, 2)
    assert refused(service.as_token(renewed.token).list_keys).reason == "ROLE_INSUFFICIENT"


def test_renewing_with_an_overlap_keeps_the_caller_going(service: Service, admin: Stubs) -> None:
    """Both secrets work until it is over, and never past the key's expiry."""
    made = admin.create_key(ttl=timedelta(hours=1))
    caller = service.as_token(made.token)
    renewed = caller.rotate_self(overlap=timedelta(days=30))
    assert renewed.api_key.overlap_end_time == made.api_key.expire_time
    assert caller.who_am_i().secret_version == 1
    assert service.as_token(renewed.token).who_am_i().secret_version == 2
    assert refused(lambda: caller.rotate_self(overlap=timedelta(days=31))).fields == ["overlap"]


# --- revoking by holding --------------------------------------------------------------------------


def revoke_token(service: Service, token: str) -> token_service_pb2.RevokeTokenResponse:
    """Revoke a token without any credential."""
    call = service.channel().unary_unary(
        "/keybearer.v1.TokenService/RevokeToken",
        request_serializer=token_service_pb2.RevokeTokenRequest.SerializeToString,
        response_deserializer=token_service_pb2.RevokeTokenResponse.FromString,
    )
    answer: token_service_pb2.RevokeTokenResponse = call(
        token_service_pb2.RevokeTokenRequest(token=token), timeout=10
    )
    return answer


def test_holding_the_current_secret_revokes_the_key(service: Service, admin: Stubs) -> None:
    """REPORTED_BY_HOLDER, by nobody, at once."""
    made = admin.create_key()
    revoke_token(service, made.token)
    assert admin.outcome(made.token) == "REVOKED"
    record = admin.key(made.api_key.id)
    assert (record.revocation_reason, record.revoked_by) == (7, "")


def test_holding_the_old_secret_ends_the_overlap(service: Service, admin: Stubs) -> None:
    """The current secret goes on."""
    made = admin.create_key()
    rotated = admin.rotate(made.api_key.id, overlap=timedelta(hours=1))
    revoke_token(service, made.token)
    assert (admin.outcome(made.token), admin.outcome(rotated.token)) == ("NOT_FOUND", "VALID")
    assert not admin.key(made.api_key.id).HasField("overlap_end_time")


def test_revoking_the_current_secret_ends_the_old_one_too(service: Service, admin: Stubs) -> None:
    """The key is dead, with both its secrets."""
    made = admin.create_key()
    rotated = admin.rotate(made.api_key.id, overlap=timedelta(hours=1))
    revoke_token(service, rotated.token)
    assert admin.outcome(made.token) == admin.outcome(rotated.token) == "REVOKED"


def test_a_disabled_keys_holder_may_revoke_it(service: Service, admin: Stubs) -> None:
    """A leak is a leak, also while the key is switched off."""
    made = admin.create_key()
    admin.disable_key(made.api_key.id)
    revoke_token(service, made.token)
    assert admin.outcome(made.token) == "REVOKED"


@pytest.mark.parametrize("how", ["garbage", "an unknown id", "a wrong secret", "dead", "revoked"])
def test_a_token_that_opens_nothing_is_ok_and_nothing_is_done(
    service: Service, admin: Stubs, how: str
) -> None:
    """Empty answer, no event, no change: nothing is learnt from it."""
    made = admin.create_key()
    token = made.token
    if how == "dead":
        admin.rotate(made.api_key.id)
    elif how == "revoked":
        admin.revoke(made.api_key.id)
    else:
        token = NOT_FOUND[how](token)
    before = admin.key(made.api_key.id), len(admin.events())
    assert revoke_token(service, token) == token_service_pb2.RevokeTokenResponse()
    assert (admin.key(made.api_key.id), len(admin.events())) == before


def test_an_empty_token_is_a_bad_field(service: Service) -> None:
    """A client that lost its token must not believe it revoked."""
    assert refused(lambda: revoke_token(service, "")).fields == ["token"]


def guess(number: int) -> str:
    """A token in the right form that opens nothing."""
    return token_format.write("kbear1", f"{number:016d}", "a" * 43)


@pytest.mark.usefixtures("one_node")
def test_guesses_are_bounded_for_each_peer(service: Service, clock: FakeClock) -> None:
    """Twenty a second; beyond, OVERLOADED with the time to wait, and later again OK."""
    for number in range(20):
        revoke_token(service, guess(number))
    refusal = refused(lambda: revoke_token(service, guess(20)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert refusal.retry_after
    clock.advance(SECOND)
    revoke_token(service, guess(21))


def test_what_is_no_token_counts_as_no_guess(service: Service) -> None:
    """Garbage costs nobody their say, however much of it comes from the same address."""
    for _ in range(100):
        assert revoke_token(service, "garbage") == token_service_pb2.RevokeTokenResponse()


def test_a_report_of_a_leak_is_never_refused_for_the_guesses_of_others(
    service: Service, admin: Stubs
) -> None:
    """Behind a proxy everybody has one address; whoever holds the token is heard all the same."""
    made = admin.create_key()
    with suppress(grpc.RpcError):
        for number in range(100):
            revoke_token(service, guess(number))
    revoke_token(service, made.token)
    assert admin.outcome(made.token) == "REVOKED"


def test_of_many_holders_at_once_one_revokes_and_all_are_answered(
    service: Service, admin: Stubs
) -> None:
    """One event, one revocation."""
    made = admin.create_key()
    barrier = threading.Barrier(5)
    failures: list[Exception] = []

    def revoke() -> None:
        barrier.wait()
        try:
            revoke_token(service, made.token)
        except grpc.RpcError as error:
            failures.append(error)

    threads = [threading.Thread(target=revoke) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    actions = [one.action for one in admin.events(target_id=made.api_key.id)]
    assert actions == [18, 12]
