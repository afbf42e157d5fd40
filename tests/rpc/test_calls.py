"""What holds for every call: credentials, errors, limits, and what is served beside the API."""

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from fakes import FakeClock, SeededEntropy
from harness import (
    ReplaceableStore,
    Service,
    Stubs,
    initialise,
    make_app,
    message,
    open_replaceable,
    raising,
    refusal_of,
    refused,
    running,
    store_of,
)
from keybearer.v1 import api_key_service_pb2, token_service_pb2, user_service_pb2
from keybearer_service.domain.clock import SECOND
from keybearer_service.storage import (
    CommitFailedError,
    StoreConflictError,
    StoreFullError,
    StoreLockedError,
)

Metadata = list[Any]
WHO = "/keybearer.v1.TokenService/WhoAmI"
LIST = "/keybearer.v1.ApiKeyService/ListApiKeys"
CREATE = "/keybearer.v1.ApiKeyService/CreateApiKey"
TIMEOUT_S = 10.0
Code = grpc.StatusCode


def call_raw(service: Service, method: str, payload: bytes, metadata: Metadata) -> bytes:
    """Make a unary call of raw bytes."""
    raw: Any = service.channel().unary_unary(method)
    answer: bytes = raw(payload, metadata=metadata, timeout=TIMEOUT_S)
    return answer


def bearer(token: str) -> Metadata:
    """The one header that is asked for."""
    return [("authorization", f"Bearer {token}")]


# --- credentials ----------------------------------------------------------------------------------

MISSING: dict[str, Callable[[str], Metadata]] = {
    "none": lambda token: [],
    "twice the same": lambda token: bearer(token) * 2,
    "a good one and garbage": lambda token: [*bearer(token), ("authorization", "Bearer x")],
    "garbage and a good one": lambda token: [("authorization", "Bearer x"), *bearer(token)],
    "another scheme": lambda token: [("authorization", f"Basic {token}")],
    "no scheme": lambda token: [("authorization", token)],
    "only the scheme": lambda token: [("authorization", "Bearer")],
    "an empty token": lambda token: [("authorization", "Bearer ")],
    "an empty header": lambda token: [("authorization", "")],
    "another header": lambda token: [("x-authorization", f"Bearer {token}")],
    "a binary header": lambda token: [("authorization-bin", f"Bearer {token}".encode())],
}


@pytest.mark.parametrize("how", sorted(MISSING))
def test_exactly_one_bearer_header_is_needed(service: Service, how: str) -> None:
    """Anything else is CREDENTIALS_MISSING, also when a good token is among it."""
    metadata = MISSING[how](service.admin_token)
    refusal = refused(lambda: call_raw(service, WHO, b"", metadata))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "CREDENTIALS_MISSING",
    )


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_scheme_is_taken_in_any_case(service: Service, scheme: str) -> None:
    """As HTTP says."""
    metadata: Metadata = [("authorization", f"{scheme} {service.admin_token}")]
    assert call_raw(service, WHO, b"", metadata)


def _revoked(admin: Stubs, clock: FakeClock) -> str:
    made = admin.create_key()
    admin.revoke(made.api_key.id)
    return made.token


def _disabled(admin: Stubs, clock: FakeClock) -> str:
    made = admin.create_key()
    admin.disable_key(made.api_key.id)
    return made.token


def _rotated_away(admin: Stubs, clock: FakeClock) -> str:
    made = admin.create_key()
    admin.rotate(made.api_key.id)
    return made.token


def _of_a_deleted_user(admin: Stubs, clock: FakeClock) -> str:
    user = admin.create_user("gone@example.com")
    made = admin.create_key(owner_id=user.id)
    admin.delete_user(user.id)
    return made.token


def _overlap_over(admin: Stubs, clock: FakeClock) -> str:
    made = admin.create_key(ttl={"seconds": 2})
    admin.rotate(made.api_key.id, overlap={"seconds": 1})
    clock.advance(SECOND)
    return made.token


def _revoked_and_expired(admin: Stubs, clock: FakeClock) -> str:
    made = admin.create_key(ttl={"seconds": 1})
    admin.revoke(made.api_key.id)
    clock.advance(SECOND)
    return made.token


@pytest.mark.parametrize(
    "make",
    [_revoked, _disabled, _rotated_away, _of_a_deleted_user, _overlap_over, _revoked_and_expired],
)
def test_whatever_is_wrong_with_a_credential_has_one_text(
    service: Service,
    admin: Stubs,
    clock: FakeClock,
    make: Callable[[Stubs, FakeClock], str],
) -> None:
    """Byte for byte as for garbage."""
    token = make(admin, clock)
    dead = refused(lambda: call_raw(service, WHO, b"", bearer(token)))
    assert dead == refused(lambda: call_raw(service, WHO, b"", bearer("garbage")))
    assert (dead.code, dead.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")


def test_the_holder_of_an_expired_key_is_told(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """CREDENTIALS_EXPIRED, to nobody who does not hold the whole secret."""
    token = admin.create_key(ttl={"seconds": 1}).token
    caller = service.as_token(token)
    assert caller.who_am_i().valid
    clock.advance(SECOND)
    refusal = refused(caller.who_am_i)
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "CREDENTIALS_EXPIRED",
    )
    other = token[:30] + ("b" if token[30] == "a" else "a") + token[31:]
    assert refused(service.as_token(other).who_am_i).reason == "CREDENTIALS_INVALID"


def remembered(caller: Stubs) -> None:
    """Call until every thread that serves the method has met the caller."""
    for _ in range(20):
        caller.validate("x")


def test_a_remembered_caller_ends_with_its_key(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """Nothing is committed when a key expires, so nothing but the clock says so."""
    made = admin.create_key(role="ROLE_VALIDATOR", ttl={"seconds": 5})
    caller = service.as_token(made.token)
    remembered(caller)
    clock.advance(5 * SECOND - 1)
    remembered(caller)
    clock.advance(1)
    for _ in range(20):
        assert refused(lambda: caller.validate("x")).reason == "CREDENTIALS_EXPIRED"


def test_a_remembered_caller_ends_with_the_overlap_of_its_secret(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """The old secret of a rotation dies by the clock alone, too."""
    made = admin.create_key(role="ROLE_VALIDATOR")
    admin.rotate(made.api_key.id, overlap={"seconds": 5})
    caller = service.as_token(made.token)
    remembered(caller)
    clock.advance(5 * SECOND)
    for _ in range(20):
        assert refused(lambda: caller.validate("x")).reason == "CREDENTIALS_INVALID"


def test_a_caller_is_refused_from_the_moment_revoke_returns(service: Service, admin: Stubs) -> None:
    """Also one that has just been accepted many times, on every thread of the server."""
    made = admin.create_key(role="ROLE_ADMIN")
    caller = service.as_token(made.token)
    for _ in range(100):
        caller.who_am_i()
    admin.revoke(made.api_key.id)
    for _ in range(100):
        assert refused(caller.who_am_i).reason == "CREDENTIALS_INVALID"
        assert refused(caller.list_keys).reason == "CREDENTIALS_INVALID"


# --- bytes ----------------------------------------------------------------------------------------

UNPARSABLE = [b"\xff", b"\x0a\xff", b"\x0a\x02\xff\xfe", b"\x00", b"\x08"]


@pytest.mark.parametrize("payload", UNPARSABLE, ids=bytes.hex)
def test_bytes_that_do_not_parse_are_refused_after_authorisation(
    service: Service, payload: bytes
) -> None:
    """Who may not call is told that alone; who may is told of the field "(message)"."""
    refusal = refused(lambda: call_raw(service, CREATE, payload, []))
    assert refusal.reason == "CREDENTIALS_MISSING"
    developer = service.with_role("ROLE_DEVELOPER").token
    refusal = refused(lambda: call_raw(service, CREATE, payload, bearer(developer)))
    assert refusal.reason == "ROLE_INSUFFICIENT"
    refusal = refused(lambda: call_raw(service, CREATE, payload, bearer(service.admin_token)))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["(message)"])
    assert refusal.metadata == {"field": "(message)"}


def test_authorisation_comes_before_arguments(service: Service) -> None:
    """A bad field of a call that may not be made is not looked at."""
    refusal = refused(lambda: service.with_role("ROLE_DEVELOPER").create_key(name=""))
    assert refusal.reason == "ROLE_INSUFFICIENT"


def test_a_message_over_128_kib_is_refused(service: Service, admin: Stubs) -> None:
    """By the transport, without details of ours; one just below is looked at."""
    refusal = refused(lambda: admin.create_key(description="x" * (128 * 1024)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
    refusal = refused(lambda: admin.create_key(description="x" * (128 * 1024 - 200)))
    assert refusal.fields == ["description"]


def test_metadata_over_8_kib_is_refused(service: Service) -> None:
    """And the connection serves others on."""
    metadata = [*bearer(service.admin_token), ("x-filler", "x" * 16 * 1024)]
    refusal = refused(lambda: call_raw(service, WHO, b"", metadata))
    assert refusal.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
    assert service.admin.who_am_i().valid


# --- a message that is held back ------------------------------------------------------------------


class HeldCall:
    """A unary call whose headers are sent at once and whose message is sent when told to."""

    def __init__(self, service: Service, method: str, token: str) -> None:
        self._messages: SimpleQueue[bytes | None] = SimpleQueue()
        call: Any = service.channel().stream_unary(method)
        before = service.only_node.calls_without_message
        self._future = call.future(
            iter(self._messages.get, None), metadata=bearer(token), timeout=TIMEOUT_S
        )
        # Until the server has judged the caller and waits for the message.
        while service.only_node.calls_without_message == before:
            threading.Event().wait(0.001)

    def send(self, payload: bytes) -> bytes:
        """Send the message; answer the answer."""
        self._messages.put(payload)
        self._messages.put(None)
        answer: bytes = self._future.result()
        return answer


@pytest.mark.parametrize("method", [WHO, LIST, "/keybearer.v1.TokenService/ValidateToken"])
def test_holding_a_message_back_does_not_outlive_a_revocation(
    service: Service, admin: Stubs, clock: FakeClock, method: str
) -> None:
    """A call that was opened before the revocation is refused when its message comes after it."""
    made = admin.create_key(role="ROLE_ADMIN")
    held = HeldCall(service, method, made.token)
    admin.revoke(made.api_key.id)
    clock.advance(SECOND)
    question = token_service_pb2.ValidateTokenRequest(token="x")
    payload = question.SerializeToString() if method.endswith("ValidateToken") else b""
    refusal = refused(lambda: held.send(payload))
    assert refusal.reason == "CREDENTIALS_INVALID"


def test_who_one_is_belongs_to_the_revision_that_is_told(service: Service, admin: Stubs) -> None:
    """A change between the judging and the answer is either in both or in neither."""
    owner = admin.create_user("owner@example.com")
    made = admin.create_key(role="ROLE_ADMIN", owner_id=owner.id)
    held = HeldCall(service, WHO, made.token)
    admin.update_user(owner.id, {"role": "ROLE_DEVELOPER"})
    head = admin.validate(made.token).revision
    me = token_service_pb2.WhoAmIResponse.FromString(held.send(b""))
    assert me.effective_role == (2 if me.revision >= head else 3)


# --- errors ---------------------------------------------------------------------------------------


SECRET_TEXT = "a text that nobody outside may read"


@pytest.mark.parametrize("breaks", ["read", "write"])
def test_an_exceptions_text_never_leaves(
    store: ReplaceableStore, admin: Stubs, breaks: str
) -> None:
    """What is unforeseen is "internal error" with a reference, nothing else."""
    with store.replacing(**{breaks: raising(RuntimeError(SECRET_TEXT))}):
        refusal = refused(admin.list_keys if breaks == "read" else admin.create_key)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert refusal.message == f"internal error (reference {refusal.metadata['reference']})"
    assert len(refusal.metadata["reference"]) == 16


def test_an_exception_while_a_refusal_is_audited_changes_nothing_of_the_refusal(
    service: Service, store: ReplaceableStore
) -> None:
    """Not even then does a text leave, and the refused call stays refused."""
    with store.replacing(write=raising(RuntimeError(SECRET_TEXT))):
        refusal = refused(service.as_token("garbage").list_keys)
    assert refusal.reason == "CREDENTIALS_INVALID"
    assert SECRET_TEXT not in refusal.message


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (StoreLockedError("x"), grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
        (StoreConflictError("x"), grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
        (StoreFullError("x"), grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL"),
        (CommitFailedError("x"), grpc.StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN"),
    ],
)
def test_trouble_of_the_store_has_its_own_words(
    store: ReplaceableStore, admin: Stubs, error: Exception, code: grpc.StatusCode, reason: str
) -> None:
    """With the time to wait, and nothing that looks like a bad key."""
    with store.replacing(write=raising(error)):
        refusal = refused(admin.create_key)
    assert (refusal.code, refusal.reason) == (code, reason)
    assert refusal.retry_after


class RepeatingEntropy(SeededEntropy):
    """Draws the same id every time, as two copies of one machine would."""

    def base62(self, length: int) -> str:
        return "A" * length


def test_an_id_that_is_drawn_twice_is_a_reason_to_try_again(
    tmp_path: Any, clock: FakeClock
) -> None:
    """Nothing was changed, and the next try draws another one."""
    data_dir, created = initialise(tmp_path / "data", clock, SeededEntropy(1))
    app = make_app(data_dir, clock, RepeatingEntropy(2))
    app.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{app.port}") as channel:
            admin = Stubs(channel, created.issued.token)
            made = admin.create_key()
            refusal = refused(admin.create_key)
            assert (refusal.code, refusal.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "STORE_UNAVAILABLE",
            )
            assert admin.outcome(made.token) == "VALID"
    finally:
        app.stop(grace_s=0)


@pytest.mark.parametrize("is_fatal", [True, False])
def test_a_failed_commit_ends_the_process_when_only_a_fresh_one_can_go_on(
    tmp_path: Any, clock: FakeClock, *, is_fatal: bool
) -> None:
    """The service asks to be ended, once it has answered."""
    data_dir, created = initialise(tmp_path / "data", clock, SeededEntropy(1))
    ended = threading.Event()
    app = make_app(data_dir, clock, SeededEntropy(2), on_fatal=ended.set, opener=open_replaceable)
    app.start()
    service = Service(
        app=app,
        data_dir=data_dir,
        admin_token=created.issued.token,
        account_id=created.account.id,
        admin_user_id=created.user.id,
        admin_key_id=created.issued.key.id,
    )
    failing = raising(CommitFailedError("x", is_fatal=is_fatal))
    try:
        with store_of(app).replacing(write=failing):
            assert refused(service.admin.create_key).reason == "OUTCOME_UNKNOWN"
        assert ended.is_set() == is_fatal
    finally:
        service.close()


def test_validation_goes_on_while_nothing_can_be_written(
    service: Service, store: ReplaceableStore, admin: Stubs
) -> None:
    """Neither use nor refusal nor mutation is needed for a verdict."""
    made = admin.create_key()
    full = raising(StoreFullError("x"))
    with store.replacing(add_uses=full, write=full):
        assert refused(admin.create_key).reason == "STORE_FULL"
        for _ in range(20):
            assert admin.outcome(made.token) == "VALID"
        refused(service.as_token("garbage").list_keys)


def test_a_call_that_is_given_up_begins_no_change(service: Service, admin: Stubs) -> None:
    """Waiting behind another write until nobody waits any more, it changes nothing."""
    before = len(admin.list_keys().api_keys)
    store = service.app.container.store
    request = api_key_service_pb2.CreateApiKeyRequest(
        name="late",
        role=2,  # type: ignore[arg-type]
        never_expires=True,
    )
    with store.write():
        call: Any = service.channel().unary_unary(CREATE)
        future = call.future(
            request.SerializeToString(), metadata=bearer(service.admin_token), timeout=0.2
        )
        with pytest.raises(grpc.RpcError):
            future.result()
        assert future.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    made = admin.create_key(name="next")
    names = [one.name for one in admin.list_keys().api_keys]
    assert "late" not in names
    assert len(names) == before + 1
    assert admin.outcome(made.token) == "VALID"


# --- beside the API -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        "/keybearer.v1.TokenService/Nothing",
        "/keybearer.v1.NothingService/WhoAmI",
        "/nothing/nothing",
        "/grpc.health.v1.Health/Nothing",
    ],
)
@pytest.mark.parametrize("with_token", [False, True])
def test_an_unknown_method_is_unimplemented_with_and_without_credentials(
    service: Service, method: str, *, with_token: bool
) -> None:
    """An UNAUTHENTICATED there would break tools that ask first."""
    metadata = bearer(service.admin_token) if with_token else []
    refusal = refused(lambda: call_raw(service, method, b"", metadata))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, "")


def test_health_is_told_to_anybody(service: Service) -> None:
    """Of the server as a whole and of each service."""
    stub: Any = health_pb2_grpc.HealthStub(service.channel())
    for name in ("", "keybearer.v1.TokenService", "keybearer.v1.ApiKeyService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=TIMEOUT_S)
    assert refusal_of(caught.value).code is grpc.StatusCode.NOT_FOUND


def test_every_method_of_the_health_service_answers(service: Service) -> None:
    """None of them ends in an error of the server."""
    for method in health_pb2.DESCRIPTOR.services_by_name["Health"].methods:
        if method.name != "Watch":
            call: Any = service.channel().unary_unary(f"/grpc.health.v1.Health/{method.name}")
            with suppress(grpc.RpcError):
                call(b"", timeout=TIMEOUT_S)
                continue
            refusal = refused(lambda call=call: call(b"", timeout=TIMEOUT_S))  # type: ignore[misc]
            assert refusal.code is grpc.StatusCode.UNIMPLEMENTED


REFLECTIONS = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]


def ask_reflection(service: Service, name: str, **question: Any) -> Any:
    """Ask one question of reflection, without a credential."""
    call = service.channel().stream_stream(
        f"/{name}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(**question)
    # One answer for one question, and an end in order once the tool asks no more.
    [answer] = call(iter([request]), timeout=TIMEOUT_S)
    return answer


@pytest.mark.parametrize("name", REFLECTIONS)
def test_reflection_lists_what_is_served_in_both_versions(service: Service, name: str) -> None:
    """To anybody: what the protos say is public."""
    answer = ask_reflection(service, name, list_services="")
    listed = {one.name for one in answer.list_services_response.service}
    assert {f"keybearer.v1.{one}Service" for one in ("Account", "ApiKey", "Token", "User")} < listed


@pytest.mark.parametrize("name", REFLECTIONS)
def test_reflection_tells_of_a_service_in_both_versions(service: Service, name: str) -> None:
    """The file that defines it; of one that is not there, that it is not."""
    answer = ask_reflection(service, name, file_containing_symbol="keybearer.v1.TokenService")
    assert answer.file_descriptor_response.file_descriptor_proto
    answer = ask_reflection(service, name, file_containing_symbol="keybearer.v1.Nothing")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_reflection_can_be_switched_off(tmp_path: Any, clock: FakeClock) -> None:
    """Then both versions are unknown methods."""
    data_dir, _ = initialise(tmp_path / "data", clock, SeededEntropy(1))
    app = make_app(data_dir, clock, SeededEntropy(2), reflection=False)
    app.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{app.port}") as channel:
            for name in REFLECTIONS:
                call: Any = channel.stream_stream(f"/{name}/ServerReflectionInfo")
                with pytest.raises(grpc.RpcError) as caught:
                    list(call(iter([b""]), timeout=TIMEOUT_S))
                assert refusal_of(caught.value).code is grpc.StatusCode.UNIMPLEMENTED
    finally:
        app.stop(grace_s=0)


# --- the end, and the log -------------------------------------------------------------------------


def test_a_shutdown_writes_the_uses_that_were_only_counted(tmp_path: Any, clock: FakeClock) -> None:
    """What was used is known to the next start."""
    with running(tmp_path / "data", clock, SeededEntropy(1)) as service:
        made = service.admin.create_key()
        for _ in range(3):
            service.admin.validate(made.token)
        service.restart()
        assert service.admin.key(made.api_key.id).use_count == 3


def test_no_token_is_in_the_log_at_debug_level(
    log: Callable[[], str], service: Service, admin: Stubs
) -> None:
    """After a token was made, used, rotated, mistyped, refused and revoked in every way."""
    made = admin.create_key()
    rotated = admin.rotate(made.api_key.id, overlap={"seconds": 60})
    held = service.as_token(rotated.token)
    held.who_am_i()
    renewed = held.rotate_self()
    for token in (made.token, rotated.token, renewed.token, service.admin_token):
        admin.validate(token)
        for wrong in (token[:-1], token + "x", token.swapcase(), f"{token} {token}"):
            refused(service.as_token(wrong).list_keys)
            admin.validate(wrong)
    refused(lambda: admin.key(made.token))
    refused(lambda: admin.user(made.token))
    refused(lambda: admin.list_keys(page_token=made.token))
    refused(lambda: admin.update_key(made.api_key.id, {"name": "x"}, paths=[made.token]))
    refused(lambda: admin.create_key(request_id=made.token))
    held.revoke_token(renewed.token)
    text = log()
    assert "call_served" in text
    assert "call_refused" in text
    for token in (made.token, rotated.token, renewed.token, service.admin_token):
        secret = token.split("_")[2]
        assert secret[:16] not in text
        assert secret[::-1][-16:] not in text


def test_every_served_management_call_is_logged_with_its_request_id(
    log: Callable[[], str], service: Service, admin: Stubs
) -> None:
    """Validating calls are not: there are too many of them."""
    admin.create_user("a@example.com")
    admin.validate("x")
    event = admin.events()[0]
    served = [line for line in log().splitlines() if "call_served" in line]
    assert [event.request_id in line for line in served if "CreateUser" in line] == [True]
    assert not [line for line in served if "ValidateToken" in line]


@pytest.mark.usefixtures("one_node")
def test_refusals_are_not_logged_without_end(
    log: Callable[[], str], service: Service, clock: FakeClock
) -> None:
    """Ten a minute of one peer, then a count."""
    request = user_service_pb2.GetUserRequest(id="x").SerializeToString()
    for _ in range(15):
        refused(
            lambda: call_raw(service, "/keybearer.v1.UserService/GetUser", request, bearer("x"))
        )
    assert log().count('"call_refused"') == 10


@pytest.mark.usefixtures("one_node")
def test_failed_calls_of_a_known_caller_are_not_logged_without_end(
    log: Callable[[], str], service: Service, clock: FakeClock
) -> None:
    """Ten a minute of one key, then a count: whoever may validate may not fill the disk."""
    validator = service.with_role("ROLE_VALIDATOR")
    for _ in range(15):
        assert refused(lambda: validator.validate("")).reason == "FIELD_INVALID"
    assert log().count('"call_failed"') == 10
    clock.advance(61 * SECOND)
    service.only_node.housekeeper.flush()
    assert '"not_logged": 5' in log()


def test_an_outage_is_not_logged_without_end(
    log: Callable[[], str], store: ReplaceableStore, admin: Stubs
) -> None:
    """Every call meets it; the log says so once a minute."""
    with store.replacing(write=raising(StoreLockedError("x"))):
        for _ in range(15):
            assert refused(admin.create_key).reason == "STORE_UNAVAILABLE"
    assert log().count('"store_unavailable"') == 1
    assert log().count('"call_failed"') == 0


# --- what a call leaves behind --------------------------------------------------------------------


WAYS_TO_END: dict[str, tuple[str, bytes, str, grpc.StatusCode]] = {
    "OK": (WHO, b"", "admin", Code.OK),
    "OK, on another pool": (LIST, b"", "admin", Code.OK),
    "no parse": (CREATE, b"\xff", "admin", Code.INVALID_ARGUMENT),
    "a bad field": (CREATE, b"", "admin", Code.INVALID_ARGUMENT),
    "no such key": (
        "/keybearer.v1.ApiKeyService/GetApiKey",
        b"\x0a\x01x",
        "admin",
        Code.NOT_FOUND,
    ),
    "a bad credential": (WHO, b"", "garbage", Code.UNAUTHENTICATED),
    "a role too low": (LIST, b"", "developer", Code.PERMISSION_DENIED),
}


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("way", sorted(WAYS_TO_END))
def test_a_call_leaves_nothing_behind_that_counts_among_the_streams_of_its_connection(
    service: Service, way: str
) -> None:
    """Three times as many calls as a connection may have streams, and no collector to help."""
    method, payload, caller, expected = WAYS_TO_END[way]
    tokens = {"admin": service.admin_token, "garbage": "garbage"}
    token = tokens.get(caller) or service.with_role("ROLE_DEVELOPER").token
    call: Any = service.channel().unary_unary(method)
    codes = set()
    for _ in range(300):
        future = call.future(payload, metadata=bearer(token), timeout=TIMEOUT_S)
        codes.add(future.code())
    assert codes == {expected}


@pytest.mark.usefixtures("no_collector")
def test_a_stream_that_ended_leaves_nothing_behind_either(service: Service) -> None:
    """Watches that were opened and given up, one after the other."""
    call: Any = service.channel().stream_stream("/keybearer.v1.TokenService/WatchInvalidations")
    subscribe = message(
        token_service_pb2.WatchInvalidationsRequest, subscribe={}
    ).SerializeToString()
    for _ in range(200):
        stream = call(iter([subscribe]), metadata=bearer(service.admin_token), timeout=TIMEOUT_S)
        assert next(iter(stream))
        stream.cancel()
    assert service.admin.who_am_i().valid
