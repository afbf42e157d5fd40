"""One table of situations, against FakeKeybearer and the service: both give the same answer."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import grpc
import pytest

from client.places import (
    FakePlace,
    Issued,
    Place,
    RealPlace,
    Watch,
    ask,
    fake_place,
    real_place,
    refused_plainly,
)
from fakes import FakeClock, SeededEntropy
from harness import running
from keybearer import Role
from keybearer.testing import FakeKeybearer
from keybearer.v1 import token_service_pb2 as pb

HOUR = timedelta(hours=1)
Situation = Callable[[Place], Any]
SITUATIONS: dict[str, Situation] = {}


def situation(act: Situation) -> Situation:
    """Put a situation into the table, under its name."""
    SITUATIONS[act.__name__.replace("_", " ").strip()] = act
    return act


def validate(
    place: Place,
    token: str,
    *,
    account: str = "",
    caller: Issued | None = None,
    **fields: Any,
) -> Any:
    """Ask about a token, as a VALIDATOR of the operator account unless `caller` says otherwise."""
    asker = place.issue(Role.VALIDATOR) if caller is None else caller
    request = pb.ValidateTokenRequest(token=token, account_id=place.account_id(account), **fields)
    return ask(place, "ValidateToken", request, caller=asker)


# --- outcomes -------------------------------------------------------------------------------------


@situation
def _valid(place: Place) -> Any:
    labels = {"team": "blue"}
    key = place.issue(scopes=["a.b", "c.*"], labels=labels)
    return validate(place, key.token)


@situation
def _valid_for_an_hour(place: Place) -> Any:
    return validate(place, place.issue(expires_in=HOUR).token)


@situation
def _valid_for_less_than_a_verdict_is_kept(place: Place) -> Any:
    return validate(place, place.issue(expires_in=timedelta(seconds=7)).token)


@situation
def _refused_for_less_than_a_verdict_is_kept(place: Place) -> Any:
    key = place.issue(expires_in=timedelta(milliseconds=250))
    return validate(place, key.token, required_role="ROLE_ADMIN")


@situation
def _an_administrator_asks(place: Place) -> Any:
    return validate(place, place.issue().token, caller=place.issue(Role.ADMIN))


@situation
def _the_asker_asks_about_itself(place: Place) -> Any:
    asker = place.issue(Role.VALIDATOR)
    return validate(place, asker.token, caller=asker)


@situation
def _an_effective_role_below_the_granted_one(place: Place) -> Any:
    return validate(place, place.issue(Role.DEVELOPER, granted_role=Role.ADMIN).token)


@situation
def _unknown(place: Place) -> Any:
    return validate(place, "kbear1_0000000000000000_nothing")


@situation
def _the_secret_of_another_key(place: Place) -> Any:
    first, second = place.issue(), place.issue()
    return validate(place, first.token[:24] + second.token[24:])


@situation
def _a_token_with_an_end(place: Place) -> Any:
    return validate(place, place.issue().token + "0")


@situation
def _a_token_in_blanks(place: Place) -> Any:
    return validate(place, f" {place.issue().token}\n")


@situation
def _a_token_that_is_too_long(place: Place) -> Any:
    return validate(place, "k" * 513)


@situation
def _an_empty_token(place: Place) -> Any:
    return validate(place, "")


@situation
def _revoked(place: Place) -> Any:
    key = place.issue(scopes=["a"])
    place.revoke(key)
    return validate(place, key.token)


@situation
def _disabled(place: Place) -> Any:
    key = place.issue()
    place.disable(key)
    return validate(place, key.token)


@situation
def _enabled_again(place: Place) -> Any:
    key = place.issue()
    place.disable(key)
    place.enable(key)
    return validate(place, key.token)


@situation
def _expired(place: Place) -> Any:
    key = place.issue(expires_in=HOUR)
    place.advance(HOUR)
    return validate(place, key.token)


@situation
def _not_yet_expired(place: Place) -> Any:
    key = place.issue(expires_in=HOUR)
    place.advance(HOUR - timedelta(microseconds=1))
    return validate(place, key.token)


@situation
def _disabled_and_expired(place: Place) -> Any:
    key = place.issue(expires_in=HOUR)
    place.disable(key)
    place.advance(HOUR)
    return validate(place, key.token)


@situation
def _expired_and_revoked(place: Place) -> Any:
    key = place.issue(expires_in=HOUR)
    place.advance(HOUR)
    place.revoke(key)
    return validate(place, key.token)


@situation
def _disabled_and_too_low(place: Place) -> Any:
    key = place.issue()
    place.disable(key)
    return validate(place, key.token, required_role="ROLE_ADMIN")


@situation
def _role_met(place: Place) -> Any:
    return validate(place, place.issue().token, required_role="ROLE_DEVELOPER")


@situation
def _role_too_low(place: Place) -> Any:
    return validate(place, place.issue().token, required_role="ROLE_ADMIN")


@situation
def _role_lowered(place: Place) -> Any:
    key = place.issue(Role.ADMIN)
    place.demote(key, Role.DEVELOPER)
    return validate(place, key.token, required_role="ROLE_ADMIN")


@situation
def _scope_met_by_a_wildcard(place: Place) -> Any:
    return validate(place, place.issue(scopes=["a.*"]).token, required_scopes=["a.b.c"])


@situation
def _scope_lacking(place: Place) -> Any:
    return validate(place, place.issue(scopes=["a.*"]).token, required_scopes=["a", "a.b"])


@situation
def _scope_met_by_rank(place: Place) -> Any:
    return validate(place, place.issue(Role.ADMIN).token, required_scopes=["a"])


@situation
def _role_and_scope_lacking(place: Place) -> Any:
    key = place.issue()
    return validate(place, key.token, required_role="ROLE_ADMIN", required_scopes=["a"])


@situation
def _scopes_replaced(place: Place) -> Any:
    key = place.issue(scopes=["a"])
    place.rescope(key, ["b"])
    return validate(place, key.token, required_scopes=["a"])


# --- requests that are wrong ----------------------------------------------------------------------


@situation
def _a_required_scope_that_is_malformed(place: Place) -> Any:
    return validate(place, place.issue().token, required_scopes=["a", "Not A Scope"])


@situation
def _a_required_scope_with_a_wildcard(place: Place) -> Any:
    return validate(place, place.issue().token, required_scopes=["a.*"])


@situation
def _a_required_scope_that_is_empty(place: Place) -> Any:
    return validate(place, place.issue().token, required_scopes=[""])


@situation
def _too_many_required_scopes(place: Place) -> Any:
    return validate(place, place.issue().token, required_scopes=[f"a{n}" for n in range(65)])


@situation
def _one_required_scope_many_times(place: Place) -> Any:
    return validate(place, place.issue(scopes=["a"]).token, required_scopes=["a"] * 65)


@situation
def _a_role_of_the_future(place: Place) -> Any:
    return validate(place, place.issue().token, required_role=99)


@situation
def _an_empty_token_and_a_malformed_scope(place: Place) -> Any:
    return validate(place, "", required_scopes=["Not A Scope"])


@situation
def _bytes_that_do_not_parse(place: Place) -> Any:
    return ask(place, "ValidateToken", b"\xff\xff", caller=place.issue(Role.VALIDATOR))


@situation
def _bytes_that_do_not_parse_of_a_stranger(place: Place) -> Any:
    return ask(place, "ValidateToken", b"\xff\xff")


@situation
def _a_message_that_is_too_large(place: Place) -> Any:
    return validate(place, "k" * (129 * 1024))


# --- accounts -------------------------------------------------------------------------------------


@situation
def _a_key_of_another_account(place: Place) -> Any:
    return validate(place, place.issue(account="tenant").token)


@situation
def _an_operator_asks_about_any_account(place: Place) -> Any:
    return validate(place, place.issue(account="tenant").token, account="-")


@situation
def _an_operator_asks_about_any_account_and_means_its_own(place: Place) -> Any:
    return validate(place, place.issue().token, account="-")


@situation
def _an_operator_names_the_account(place: Place) -> Any:
    return validate(place, place.issue(account="tenant").token, account="tenant")


@situation
def _an_operator_names_the_wrong_account(place: Place) -> Any:
    return validate(place, place.issue().token, account="tenant")


@situation
def _an_operator_names_no_account_at_all(place: Place) -> Any:
    return validate(place, place.issue().token, account="NoSuchAccount001")


@situation
def _an_operator_names_its_own_account(place: Place) -> Any:
    return validate(place, place.issue().token, account="operator")


@situation
def _a_tenant_asks_about_its_own(place: Place) -> Any:
    caller = place.issue(Role.VALIDATOR, account="tenant")
    return validate(place, place.issue(account="tenant").token, caller=caller)


@situation
def _a_tenant_names_its_own_account(place: Place) -> Any:
    caller = place.issue(Role.VALIDATOR, account="tenant")
    return validate(place, place.issue(account="tenant").token, caller=caller, account="tenant")


@situation
def _a_tenant_asks_about_a_key_of_the_operator(place: Place) -> Any:
    caller = place.issue(Role.VALIDATOR, account="tenant")
    return validate(place, place.issue().token, caller=caller)


@situation
def _a_tenant_asks_about_any_account(place: Place) -> Any:
    caller = place.issue(Role.VALIDATOR, account="tenant")
    return validate(place, place.issue(account="tenant").token, caller=caller, account="-")


@situation
def _an_administrator_of_a_tenant_names_another_account(place: Place) -> Any:
    caller = place.issue(Role.ADMIN, account="tenant")
    return validate(place, place.issue().token, caller=caller, account="operator")


@situation
def _a_tenant_names_no_account_at_all(place: Place) -> Any:
    caller = place.issue(Role.VALIDATOR, account="tenant")
    return validate(place, "", caller=caller, account="NoSuchAccount001")


# --- the caller's own credential ------------------------------------------------------------------

CREDENTIALS: dict[str, Callable[[Place], tuple[tuple[str, str], ...]]] = {
    "no credential": lambda _: (),
    "another scheme": lambda place: (("authorization", f"Basic {place.issue().token}"),),
    "two credentials": lambda place: (
        ("authorization", f"Bearer {place.issue(Role.VALIDATOR).token}"),
        ("authorization", f"Bearer {place.issue(Role.VALIDATOR).token}"),
    ),
    "two blanks": lambda place: (
        ("authorization", f"Bearer  {place.issue(Role.VALIDATOR).token}"),
    ),
    "a credential of nobody": lambda _: (("authorization", "Bearer nothing"),),
    "a scheme in another case": lambda place: (
        ("authorization", f"bEARER {place.issue(Role.VALIDATOR).token}"),
    ),
}


def _presents(present: Callable[[Place], tuple[tuple[str, str], ...]]) -> Situation:
    request = pb.ValidateTokenRequest(token="unknown")
    return lambda place: ask(place, "ValidateToken", request, metadata=present(place))


SITUATIONS |= {name: _presents(present) for name, present in CREDENTIALS.items()}


def _asks_with(change: Callable[[Place, Issued], None]) -> Situation:
    def act(place: Place) -> Any:
        caller = place.issue(Role.VALIDATOR, expires_in=HOUR)
        change(place, caller)
        return validate(place, "unknown", caller=caller)

    return act


SITUATIONS["a revoked caller"] = _asks_with(lambda place, caller: place.revoke(caller))
SITUATIONS["a disabled caller"] = _asks_with(lambda place, caller: place.disable(caller))
SITUATIONS["an expired caller"] = _asks_with(lambda place, _: place.advance(HOUR))


@situation
def _a_developer_asks(place: Place) -> Any:
    return validate(place, "unknown", caller=place.issue(Role.DEVELOPER))


@situation
def _a_developer_asks_wrongly(place: Place) -> Any:
    return validate(place, "", caller=place.issue(Role.DEVELOPER))


@situation
def _an_administrator_that_was_lowered_asks(place: Place) -> Any:
    caller = place.issue(Role.DEVELOPER, granted_role=Role.ADMIN)
    return validate(place, "unknown", caller=caller)


# --- batches --------------------------------------------------------------------------------------


def batch(place: Place, *requests: pb.ValidateTokenRequest, caller: Issued | None = None) -> Any:
    """Ask about many tokens."""
    asker = place.issue(Role.VALIDATOR) if caller is None else caller
    request = pb.BatchValidateTokensRequest(requests=requests)
    return ask(place, "BatchValidateTokens", request, caller=asker)


def about(token: str, **fields: Any) -> pb.ValidateTokenRequest:
    """Return one question of a batch."""
    return pb.ValidateTokenRequest(token=token, **fields)


@situation
def _a_batch(place: Place) -> Any:
    first, second = place.issue(scopes=["a"]), place.issue()
    place.revoke(second)
    return batch(
        place,
        about(first.token),
        about(""),
        about("k" * 513),
        about(second.token),
        about(first.token, required_scopes=["b"]),
    )


@situation
def _an_empty_batch(place: Place) -> Any:
    return batch(place)


@situation
def _the_largest_batch(place: Place) -> Any:
    return batch(place, *[about("unknown")] * 100)


@situation
def _a_batch_that_is_too_large(place: Place) -> Any:
    return batch(place, *[about("unknown")] * 101)


@situation
def _a_batch_with_a_malformed_scope(place: Place) -> Any:
    return batch(place, about("unknown"), about("unknown", required_scopes=["a", "B"]))


@situation
def _a_batch_with_a_role_of_the_future(place: Place) -> Any:
    return batch(place, about("unknown"), about("unknown", required_role=99))


@situation
def _a_batch_of_a_tenant_about_any_account(place: Place) -> Any:
    caller = place.issue(Role.VALIDATOR, account="tenant")
    return batch(place, about("unknown"), about("unknown", account_id="-"), caller=caller)


# --- who am I -------------------------------------------------------------------------------------


def who(place: Place, **fields: Any) -> Any:
    """Ask who calls."""
    return ask(place, "WhoAmI", pb.WhoAmIRequest(), caller=place.issue(**fields))


@situation
def _who_am_i(place: Place) -> Any:
    return who(place, role=Role.DEVELOPER, scopes=["a.*"], labels={"team": "blue"})


@situation
def _who_am_i_in_a_tenant(place: Place) -> Any:
    return who(place, role=Role.VALIDATOR, account="tenant")


@situation
def _who_am_i_with_a_lowered_role(place: Place) -> Any:
    return who(place, role=Role.VALIDATOR, granted_role=Role.ADMIN)


@situation
def _who_am_i_for_thirty_days(place: Place) -> Any:
    return who(place, expires_in=timedelta(days=30))


@situation
def _who_am_i_for_more_than_thirty_days(place: Place) -> Any:
    return who(place, expires_in=timedelta(days=30, microseconds=1))


@situation
def _who_am_i_without_a_credential(place: Place) -> Any:
    return ask(place, "WhoAmI", pb.WhoAmIRequest())


# --- revocation by the holder ---------------------------------------------------------------------


def give_up(place: Place, token: str) -> Any:
    """Revoke a token without another credential."""
    return ask(place, "RevokeToken", pb.RevokeTokenRequest(token=token))


@situation
def _a_holder_revokes(place: Place) -> Any:
    key = place.issue()
    return give_up(place, key.token), validate(place, key.token), give_up(place, key.token)


@situation
def _a_holder_revokes_what_is_disabled(place: Place) -> Any:
    key = place.issue()
    place.disable(key)
    return give_up(place, key.token), validate(place, key.token)


@situation
def _a_holder_revokes_what_has_expired(place: Place) -> Any:
    key = place.issue(expires_in=HOUR)
    place.advance(HOUR)
    return give_up(place, key.token), validate(place, key.token)


@situation
def _somebody_revokes_what_is_no_token(place: Place) -> Any:
    return give_up(place, "unknown")


@situation
def _somebody_revokes_nothing(place: Place) -> Any:
    return give_up(place, "")


# --- what cannot be done to a key -----------------------------------------------------------------


def _is_refused(change: Callable[[], Any]) -> bool:
    try:
        change()
    except (ValueError, grpc.RpcError):
        return True
    return False


@situation
def _a_revoked_key_stays_revoked(place: Place) -> Any:
    key = place.issue()
    place.revoke(key)
    changes = (place.enable, place.disable, place.revoke)
    refused = [_is_refused(functools.partial(change, key)) for change in changes]
    return refused, validate(place, key.token)


@situation
def _an_administrator_has_no_scopes(place: Place) -> Any:
    return _is_refused(lambda: place.issue(Role.ADMIN, scopes=["a"]))


@situation
def _a_scope_that_is_malformed(place: Place) -> Any:
    key = place.issue()
    return (
        _is_refused(lambda: place.issue(scopes=["Not A Scope"])),
        _is_refused(lambda: place.rescope(key, ["*.b"])),
        _is_refused(lambda: place.rescope(key, [f"a{n}" for n in range(65)])),
        _is_refused(lambda: place.rescope(key, ["*", "a.*", "a"])),
    )


@situation
def _a_key_without_a_role(place: Place) -> Any:
    return _is_refused(lambda: place.issue(Role.UNSPECIFIED))


@situation
def _a_key_that_has_expired_at_once(place: Place) -> Any:
    return _is_refused(lambda: place.issue(expires_in=timedelta()))


# --- streams of changes ---------------------------------------------------------------------------


@situation
def _a_stream_begins(place: Place) -> Any:
    watch = Watch(place, place.issue(Role.VALIDATOR)).send(subscribe={}).hear()
    return watch.send(ping={"sent_at": 7}).hear().close()


@situation
def _a_stream_of_another_history(place: Place) -> Any:
    watch = Watch(place, place.issue(Role.VALIDATOR))
    return watch.send(subscribe={"epoch": "elsewhere", "from_revision": 1}).hear().close()


@situation
def _a_stream_hears_of_a_key(place: Place) -> Any:
    key = place.issue()
    watch = Watch(place, place.issue(Role.VALIDATOR)).send(subscribe={}).hear()
    for change in (place.disable, place.enable, place.revoke):
        change(key)
        watch.hear()
    return watch.close()


@situation
def _a_stream_of_a_tenant_hears_of_its_own_alone(place: Place) -> Any:
    foreign, own = place.issue(), place.issue(account="tenant")
    watch = Watch(place, place.issue(Role.VALIDATOR, account="tenant")).send(subscribe={}).hear()
    place.revoke(foreign)
    place.revoke(own)
    watch.hear()
    return watch.send(ping={"sent_at": 7}).hear().close()


@situation
def _a_stream_that_begins_with_a_ping(place: Place) -> Any:
    watch = Watch(place, place.issue(Role.VALIDATOR))
    return watch.send(ping={"sent_at": 7}).hear().close()


@situation
def _a_stream_that_begins_with_nothing(place: Place) -> Any:
    return Watch(place, place.issue(Role.VALIDATOR)).send().hear().close()


@situation
def _a_stream_that_begins_twice(place: Place) -> Any:
    watch = Watch(place, place.issue(Role.VALIDATOR)).send(subscribe={}).hear()
    return watch.send(subscribe={}).hear().close()


@situation
def _a_stream_with_an_empty_message(place: Place) -> Any:
    watch = Watch(place, place.issue(Role.VALIDATOR)).send(subscribe={}).hear()
    return watch.send().hear().close()


@situation
def _a_stream_with_a_report_that_is_too_long(place: Place) -> Any:
    watch = Watch(place, place.issue(Role.VALIDATOR)).send(subscribe={}).hear()
    return watch.send(usage={"items": [{"key_id": "x"}] * 501}).hear().close()


@situation
def _a_stream_with_a_report(place: Place) -> Any:
    watch = Watch(place, place.issue(Role.VALIDATOR)).send(subscribe={}).hear()
    watch.send(usage={"items": [{"key_id": "x", "count": 1}]})
    return watch.send(ping={"sent_at": 7}).hear().close()


@situation
def _a_stream_whose_watcher_is_revoked(place: Place) -> Any:
    watcher = place.issue(Role.VALIDATOR)
    watch = Watch(place, watcher).send(subscribe={}).hear()
    place.revoke(watcher)
    watch.hear()
    return watch.send(ping={"sent_at": 7}).hear().close()


@situation
def _a_stream_of_a_developer(place: Place) -> Any:
    return Watch(place, place.issue()).send(subscribe={}).hear().close()


# --- both places ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> Iterator[tuple[FakePlace, RealPlace]]:
    """Run the fake and the service."""
    with ExitStack() as stack:
        fake = stack.enter_context(fake_place())
        yield fake, stack.enter_context(real_place(tmp_path_factory.mktemp("real") / "data", seed))


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_fake_and_the_service_answer_alike(
    name: str, places: tuple[FakePlace, RealPlace]
) -> None:
    """Status, reason, details and every field of an answer are the same."""
    fake, real = places
    assert SITUATIONS[name](fake) == SITUATIONS[name](real)


class ForgetfulKeybearer(FakeKeybearer):
    """Planted: a fake that disables nothing."""

    def disable(self, token: str) -> None:
        """Do nothing."""


def test_a_fake_that_answers_differently_is_caught(
    places: tuple[FakePlace, RealPlace],
) -> None:
    """The table notices a fake that treats one kind of key otherwise than the service."""
    _, real = places
    with fake_place(ForgetfulKeybearer) as forgetful:
        differing = {
            name
            for name in ("valid", "disabled", "disabled and too low", "revoked")
            if _nameless(SITUATIONS[name](forgetful)) != _nameless(SITUATIONS[name](real))
        }
    assert differing == {"disabled", "disabled and too low"}


def _nameless(answer: Any) -> Any:
    """Return an answer without names, which count the keys of a place."""
    return {name: answer[name] for name in answer if name in ("valid", "outcome")}


# The threads of the service end when its store is taken away.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_outage_of_the_fake_is_one_of_the_service(
    tmp_path: Any, clock: FakeClock, entropy: SeededEntropy, fake_keybearer: FakeKeybearer
) -> None:
    """A call that needs a closed store fails as a call during an outage of the fake does."""
    answers = []
    with running(tmp_path / "data", clock, entropy) as service:
        admin = service.admin
        service.app.container.store.close()
        with pytest.raises(grpc.RpcError) as failed:
            admin.validate("unknown")
        answers.append(refused_plainly(failed.value))
    with (
        fake_keybearer.outage(),
        grpc.insecure_channel(fake_keybearer.address) as channel,
    ):
        fake = FakePlace(fake_keybearer, channel)
        answers.append(ask(fake, "ValidateToken", pb.ValidateTokenRequest(token="unknown")))
    assert answers[0] == answers[1]
