"""A keybearer for tests: a real gRPC server in this process, with made-up keys.

    with FakeKeybearer() as keybearer:
        token = keybearer.issue(Role.DEVELOPER, scopes=["clusters.read"])
        server = grpc.server(pool, interceptors=[AuthInterceptor(keybearer.verifier())])
        ...
        keybearer.revoke(token)

The fake can return every outcome and simulate outages. Its clock stands still until a test advances
it, and it announces changes to caching verifiers. For pytest, `pytest_plugins =
["keybearer.testing"]` provides it as the fixture `fake_keybearer`; nothing else here needs pytest.
It answers as the service does: validation, WhoAmI, RevokeToken and the stream of changes. It has no
users, no audit log and no management of keys: to test those, start the service itself.
"""

import contextlib
import queue
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import grpc

from keybearer._client.client import AsyncKeybearerClient, KeybearerClient
from keybearer._client.convert import timestamp_of
from keybearer._client.remote import AsyncRemoteVerifier, RemoteVerifier
from keybearer._guard.identity import current_identity
from keybearer._guard.interceptor import AuthInterceptor
from keybearer._wire.arguments import member, strings
from keybearer._wire.denial import OPERATOR_ONLY, Denial, denial_of, field_invalid
from keybearer._wire.limits import (
    MAX_BATCH,
    MAX_CACHE_SECONDS,
    MAX_NEGATIVE_CACHE_SECONDS,
    MAX_REQUEST_BYTES,
    MAX_SCOPES,
    MAX_USAGE_ITEMS,
)
from keybearer._wire.token_format import BASE62, DEFAULT_PREFIX, SECRET_LENGTH, write_token
from keybearer.access import (
    NO_CONTEXT,
    AccessRule,
    Context,
    Decision,
    Role,
    decide,
    is_held_scope,
    is_required_scope,
)
from keybearer.models import Identity, Outcome, Presented, UserType, Verdict
from keybearer.v1 import token_service_pb2

__all__ = [
    "ACCOUNT_ID",
    "CACHE_FOR",
    "NEGATIVE_CACHE_FOR",
    "OWNER_ID",
    "START",
    "FakeKeybearer",
]

ACCOUNT_ID: Final = "FakeAccount00001"
"""The operator account: that of the validator, and of keys that are issued without naming one.

Callers of this account may ask about keys of other accounts, and callers of other accounts not.
"""
OWNER_ID: Final = "FakeOwner0000001"
"""The owner of keys that are issued without naming an owner."""
START: Final = datetime(2030, 1, 1, tzinfo=UTC)
"""The time of the clock at the start."""
CACHE_FOR: Final = timedelta(seconds=MAX_CACHE_SECONDS)
"""How long a positive verdict may be reused."""
NEGATIVE_CACHE_FOR: Final = timedelta(seconds=MAX_NEGATIVE_CACHE_SECONDS)
"""How long a negative verdict may be reused."""
_EXPIRES_SOON: Final = timedelta(days=30)
_ASKERS: Final = AccessRule(only_roles=(Role.VALIDATOR, Role.ADMIN))
"""The rule of the methods that validate."""

_Request = token_service_pb2.WatchInvalidationsRequest
_Response = token_service_pb2.WatchInvalidationsResponse
_Event = _Response | _Request | None
"""What a watch stream handles: a response to send, a message of the watcher, or the end."""


class _RefusedError(Exception):
    """A request that is refused."""

    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.message)
        self.denial = denial


@dataclass(frozen=True, slots=True)
class _Key:
    identity: Identity
    state: Outcome = Outcome.VALID
    """VALID, REVOKED or DISABLED. The clock decides whether the key has expired."""
    forced: int | None = None
    """An outcome to return whatever the state."""


@dataclass(frozen=True, slots=True, eq=False)
class _Watch:
    """One open stream of changes."""

    events: "queue.SimpleQueue[_Event]"
    account_id: str
    """Only changes of this account are announced, unless it is the operator account."""


class FakeKeybearer:
    """An in-process keybearer on a free loopback port. Use it as a context manager.

    Its methods may be called from any thread while calls are served.

    Args:
        credentials: For TLS; None listens in plaintext.
    """

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self._lock = threading.RLock()
        self._keys: dict[str, _Key] = {}
        self._now = START
        self._revision = 0
        self._questions = 0
        self._trouble: Callable[[grpc.ServicerContext], None] | None = None
        self._epoch = secrets.token_hex(8)
        self._watches: set[_Watch] = set()
        self._clients: list[KeybearerClient] = []
        self.validator_token = self.issue(Role.VALIDATOR, name="validator")
        """The token of a VALIDATOR, which may validate tokens."""
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=32, thread_name_prefix="fake-keybearer"),
            interceptors=[
                _TroubleInterceptor(self._apply_trouble),
                AuthInterceptor(_OwnVerifier(self._judge_own), rejudge_after=0.5),
            ],
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ),
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{port}"
        """Where the fake listens, as `host:port`."""

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening and end all calls. From now on connections are refused."""
        self._server.stop(None).wait()
        for client in self._clients:
            client.close()

    def verifier(self, *, account_id: str = "", timeout: float = 2.0) -> RemoteVerifier:
        """Return a verifier that validates every token here. It is closed with the fake."""
        client = KeybearerClient(self.address, token=self.validator_token, tls=False)
        self._clients.append(client)
        return RemoteVerifier(client, account_id=account_id, timeout=timeout)

    def async_verifier(self, *, account_id: str = "", timeout: float = 2.0) -> AsyncRemoteVerifier:
        """Return a verifier for asyncio that validates every token here."""
        client = AsyncKeybearerClient(self.address, token=self.validator_token, tls=False)
        return AsyncRemoteVerifier(client, account_id=account_id, timeout=timeout)

    def issue(
        self,
        role: Role = Role.DEVELOPER,
        *,
        scopes: Iterable[str] = (),
        name: str = "test",
        labels: Mapping[str, str] | None = None,
        expires_in: timedelta | None = None,
        owner_id: str = OWNER_ID,
        owner_email: str = "owner@example.com",
        account_id: str = ACCOUNT_ID,
        granted_role: Role | None = None,
    ) -> str:
        """Create a key and return its token.

        Args:
            role: The effective role.
            scopes: The scopes of the key.
            name: The name of the key.
            labels: The labels of the key.
            expires_in: A duration from the time of the clock; None means never.
            owner_id: The owner of the key.
            owner_email: For display.
            account_id: The account of the key.
            granted_role: The granted role, when it is not the effective role.

        Raises:
            ValueError: The service has no such key: one without a role, with an effective role
                above the granted one, with scopes that are malformed or beside the granted role
                ADMIN, or one that has expired already.
            TypeError: An argument has another type; the message names it.
        """
        granted = role if granted_role is None else granted_role
        member("role", Role, role)
        member("granted_role", Role, granted)
        if not role or granted < role:
            raise ValueError("a key has a role, and its effective role is at most the granted one")
        if expires_in is not None and expires_in <= timedelta():
            raise ValueError("expires_in must be positive; `advance` lets a key expire")
        with self._lock:
            identity = Identity(
                key_id=secrets.token_hex(8),
                account_id=account_id,
                owner_id=owner_id,
                effective_role=role,
                granted_role=granted,
                scopes=_held_scopes(scopes, granted),
                key_name=name,
                owner_email=owner_email,
                owner_type=UserType.PERSON,
                labels=dict(labels or {}),
                expire_time=None if expires_in is None else self._now + expires_in,
                secret_version=1,
            )
            token = _new_token(identity.key_id)
            self._keys[token] = _Key(identity)
            self._revision += 1
            return token

    def identity_of(self, token: str) -> Identity:
        """Return the identity behind a token.

        Raises:
            KeyError: The token was not issued here.
        """
        with self._lock:
            return self._keys[token].identity

    def revoke(self, token: str) -> None:
        """Revoke a key, which is final."""
        self._change(token, state=Outcome.REVOKED)

    def disable(self, token: str) -> None:
        """Disable a key.

        Raises:
            ValueError: The key is revoked.
        """
        self._set_state(token, Outcome.DISABLED)

    def enable(self, token: str) -> None:
        """Enable a key that was disabled.

        Raises:
            ValueError: The key is revoked.
        """
        self._set_state(token, Outcome.VALID)

    def change(
        self, token: str, *, role: Role | None = None, scopes: Iterable[str] | None = None
    ) -> None:
        """Change the effective role or the scopes. None leaves them as they are.

        A role above the granted one raises that too.

        Raises:
            ValueError: The service has no such key; see `issue`.
        """
        with self._lock:
            identity = self._keys[token].identity
            if role is not None:
                granted = max(role, identity.granted_role)
                identity = replace(identity, effective_role=role, granted_role=granted)
            held = _held_scopes(
                identity.scopes if scopes is None else scopes, identity.granted_role
            )
            self._change(token, identity=replace(identity, scopes=held))

    def force(self, token: str, outcome: int | None) -> None:
        """Return this outcome for a token from now on, whatever the state of its key.

        Args:
            token: The token.
            outcome: Also a number that this version does not know. None returns to the real state.
        """
        self._change(token, forced=outcome)

    @property
    def now(self) -> datetime:
        """The time of the clock. It stands still until `advance`."""
        with self._lock:
            return self._now

    def advance(self, by: timedelta) -> None:
        """Move the clock, and have caching verifiers forget every verdict."""
        with self._lock:
            self._now += by
            self._announce("", everything=True)

    @property
    def questions(self) -> int:
        """How many tokens were validated here so far."""
        with self._lock:
            return self._questions

    @contextlib.contextmanager
    def outage(
        self,
        code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        reason: str = "STORE_UNAVAILABLE",
    ) -> Iterator[None]:
        """Let every call fail during the block.

        Args:
            code: The status of the calls.
            reason: The reason in their details.
        """
        denial = Denial(code=code, reason=reason, message="simulated outage", retry_after=1.0)

        with self._troubled(lambda context: _abort(context, denial)):
            yield

    @contextlib.contextmanager
    def stall(self) -> Iterator[None]:
        """Let every call hang until the block ends or the caller gives up."""
        over = threading.Event()

        def hang(context: grpc.ServicerContext) -> None:
            while context.is_active() and not over.wait(0.02):
                pass

        with self._troubled(hang):
            try:
                yield
            finally:
                over.set()

    @contextlib.contextmanager
    def _troubled(self, trouble: Callable[[grpc.ServicerContext], None]) -> Iterator[None]:
        self._trouble = trouble
        try:
            yield
        finally:
            self._trouble = None

    def _apply_trouble(self, context: grpc.ServicerContext) -> None:
        """Let a call suffer the outage or the stall of the moment, if there is one."""
        trouble = self._trouble
        if trouble is not None:
            trouble(context)

    def _change(self, token: str, **changes: Any) -> None:
        with self._lock:
            key = self._keys[token] = replace(self._keys[token], **changes)
            self._announce(key.identity.account_id, key_id=key.identity.key_id)

    def _set_state(self, token: str, state: Outcome) -> None:
        with self._lock:
            if self._keys[token].state is Outcome.REVOKED:
                raise ValueError("the key is revoked, which is final")
            self._change(token, state=state)

    def _announce(self, account_id: str, **subject: Any) -> None:
        """Count a change, and send it to the streams that may see it.

        Args:
            account_id: The account of what changed; empty means every account.
            subject: What changed.
        """
        self._revision += 1
        invalidation = _Response.Invalidation(revision=self._revision, **subject)
        for watch in self._watches:
            if not account_id or watch.account_id in (ACCOUNT_ID, account_id):
                watch.events.put(_Response(invalidation=invalidation))

    def _judge(
        self, token: str, account_id: str, rule: AccessRule, context: Context
    ) -> tuple[int, Identity | None]:
        """Return outcome and identity. The order is that of the wire contract, section 3."""
        key = self._keys.get(token)
        if key is None or account_id not in ("-", key.identity.account_id):
            return Outcome.NOT_FOUND, None
        identity = key.identity
        outcome = _OUTCOMES[decide(rule, identity.effective_role, identity.scopes, context)]
        if key.forced is not None:
            return key.forced, identity
        if key.state is Outcome.REVOKED:
            outcome = Outcome.REVOKED
        elif identity.expire_time is not None and self._now >= identity.expire_time:
            outcome = Outcome.EXPIRED
        elif key.state is Outcome.DISABLED:
            outcome = Outcome.DISABLED
        return outcome, identity

    def _judge_own(self, presented: Presented) -> Verdict:
        """Judge a caller of the fake itself."""
        with self._lock:
            outcome, identity = self._judge(presented.token, "-", AccessRule(), presented)
        return Verdict(outcome=_known(outcome), identity=identity)

    def _handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "keybearer.v1.TokenService",
            {
                "ValidateToken": grpc.unary_unary_rpc_method_handler(
                    self._validate_token,
                    token_service_pb2.ValidateTokenRequest.FromString,
                    token_service_pb2.ValidateTokenResponse.SerializeToString,
                ),
                "BatchValidateTokens": grpc.unary_unary_rpc_method_handler(
                    self._batch_validate_tokens,
                    token_service_pb2.BatchValidateTokensRequest.FromString,
                    token_service_pb2.BatchValidateTokensResponse.SerializeToString,
                ),
                "WhoAmI": grpc.unary_unary_rpc_method_handler(
                    self._who_am_i,
                    token_service_pb2.WhoAmIRequest.FromString,
                    token_service_pb2.WhoAmIResponse.SerializeToString,
                ),
                "WatchInvalidations": grpc.stream_stream_rpc_method_handler(
                    self._watch_invalidations,
                    _Request.FromString,
                    _Response.SerializeToString,
                ),
                "RevokeToken": grpc.unary_unary_rpc_method_handler(
                    self._revoke_token,
                    token_service_pb2.RevokeTokenRequest.FromString,
                    token_service_pb2.RevokeTokenResponse.SerializeToString,
                ),
            },
        )

    def _validate_token(
        self, request: token_service_pb2.ValidateTokenRequest, context: grpc.ServicerContext
    ) -> token_service_pb2.ValidateTokenResponse:
        with _refusing(context):
            account_id, rule = _question_of(request)
        if not request.token:
            _abort(context, field_invalid("token", "required"))
        with self._lock:
            response = self._verdict_about(request.token, account_id, rule)
            response.epoch = self._epoch
            return response

    def _batch_validate_tokens(
        self, request: token_service_pb2.BatchValidateTokensRequest, context: grpc.ServicerContext
    ) -> token_service_pb2.BatchValidateTokensResponse:
        if not 1 <= len(request.requests) <= MAX_BATCH:
            _abort(context, field_invalid("requests", f"1 to {MAX_BATCH}"))
        with _refusing(context):
            questions = [
                (one.token, *_question_of(one, f"requests[{index}]."))
                for index, one in enumerate(request.requests)
            ]
        with self._lock:
            return token_service_pb2.BatchValidateTokensResponse(
                responses=[self._verdict_about(*question) for question in questions],
                epoch=self._epoch,
            )

    def _verdict_about(
        self, token: str, account_id: str, rule: AccessRule
    ) -> token_service_pb2.ValidateTokenResponse:
        self._questions += 1
        outcome, identity = self._judge(token, account_id, rule, NO_CONTEXT)
        valid = outcome == Outcome.VALID
        response = token_service_pb2.ValidateTokenResponse(
            valid=valid, outcome=_number(outcome), revision=self._revision
        )
        cache_for = CACHE_FOR if valid else NEGATIVE_CACHE_FOR
        if identity is not None:
            _describe(identity, response)
            if outcome in _OF_LIVE_KEYS and identity.expire_time is not None:
                cache_for = min(cache_for, identity.expire_time - self._now)
        response.cache_for.FromTimedelta(cache_for)
        return response

    def _who_am_i(
        self, _: token_service_pb2.WhoAmIRequest, __: grpc.ServicerContext
    ) -> token_service_pb2.WhoAmIResponse:
        caller = current_identity()
        with self._lock:
            response = token_service_pb2.WhoAmIResponse(
                valid=True,
                outcome=_number(Outcome.VALID),
                epoch=self._epoch,
                revision=self._revision,
            )
            expires = caller.expire_time
            response.expires_soon = expires is not None and expires - self._now <= _EXPIRES_SOON
        response.is_operator = caller.account_id == ACCOUNT_ID
        _describe(caller, response)
        return response

    def _revoke_token(
        self, request: token_service_pb2.RevokeTokenRequest, context: grpc.ServicerContext
    ) -> token_service_pb2.RevokeTokenResponse:
        if not request.token:
            _abort(context, field_invalid("token", "required"))
        with self._lock:
            key = self._keys.get(request.token)
            if key is not None and key.state is not Outcome.REVOKED:
                self.revoke(request.token)
        return token_service_pb2.RevokeTokenResponse()

    def _watch_invalidations(
        self,
        requests: Iterator[_Request],
        context: grpc.ServicerContext,
    ) -> Iterator[_Response]:
        """Serve a stream of changes: every pong follows the changes before its ping."""
        caller = current_identity()
        watch = _Watch(queue.SimpleQueue(), caller.account_id)
        events = watch.events

        def end() -> None:
            with self._lock:
                self._watches.discard(watch)
            events.put(None)

        threading.Thread(target=_listen, args=(requests, events), daemon=True).start()
        has_subscribed = False
        if not context.add_callback(end):
            end()
        while (event := events.get()) is not None:
            if isinstance(event, _Response):
                yield event
                continue
            self._apply_trouble(context)
            denial = _denial_of_message(event, has_subscribed=has_subscribed)
            if denial is not None:
                _abort(context, denial)
            if event.HasField("subscribe"):
                has_subscribed = True
                with self._lock:
                    self._watches.add(watch)
                    yield self._greeting(event.subscribe)
            elif event.HasField("ping"):
                denial = self._denial_of_watcher(caller)
                if denial is not None:
                    _abort(context, denial)
                with self._lock:
                    # Every change up to this head stands in the queue before the pong.
                    pong = _Response.Pong(sent_at=event.ping.sent_at, head_revision=self._revision)
                    events.put(_Response(pong=pong))

    def _greeting(self, subscribe: _Request.Subscribe) -> _Response:
        # The fake keeps no past changes, so a client that returns has to forget everything.
        if subscribe.epoch:
            return _Response(reset=_Response.Reset(epoch=self._epoch, head_revision=self._revision))
        return _Response(hello=_Response.Hello(epoch=self._epoch, head_revision=self._revision))

    def _denial_of_watcher(self, caller: Identity) -> Denial | None:
        """Judge the credential of a stream again, and return the denial if there is one."""
        with self._lock:
            (token,) = (
                token for token, key in self._keys.items() if key.identity.key_id == caller.key_id
            )
            outcome, identity = self._judge(token, "-", _ASKERS, NO_CONTEXT)
        if outcome == Outcome.VALID:
            return None
        role = Role.UNSPECIFIED if identity is None else identity.effective_role
        return denial_of(_known(outcome), _ASKERS, role)


def _listen(requests: Iterator[_Request], events: "queue.SimpleQueue[_Event]") -> None:
    """Queue the messages of a watcher."""
    with contextlib.suppress(Exception):
        for request in requests:
            events.put(request)
    events.put(None)


def _question_of(
    request: token_service_pb2.ValidateTokenRequest, prefix: str = ""
) -> tuple[str, AccessRule]:
    """Return the account and the rule that a question is about.

    Raises:
        _RefusedError: The caller may not ask it, or a field is wrong.
    """
    own = current_identity().account_id
    account_id = request.account_id or own
    if own not in (account_id, ACCOUNT_ID):
        raise _RefusedError(OPERATOR_ONLY)
    if request.required_role not in [int(role) for role in Role]:
        raise _RefusedError(field_invalid(f"{prefix}required_role", "a role"))
    scopes = tuple(dict.fromkeys(request.required_scopes))
    if len(scopes) > MAX_SCOPES:
        raise _RefusedError(field_invalid(f"{prefix}required_scopes", f"at most {MAX_SCOPES}"))
    for index, scope in enumerate(scopes):
        if not is_required_scope(scope):
            name = f"{prefix}required_scopes[{index}]"
            raise _RefusedError(field_invalid(name, "a scope without a wildcard"))
    return account_id, AccessRule(role=Role(request.required_role), scopes=scopes)


def _denial_of_message(message: _Request, *, has_subscribed: bool) -> Denial | None:
    """Return why a message on a stream of changes is refused, if it is."""
    kind = message.WhichOneof("message")
    if kind is None:
        return field_invalid("message", "one of subscribe, ping, usage is required")
    if (kind == "subscribe") is has_subscribed:
        return field_invalid("subscribe", "must be the first message, and only the first")
    if kind == "usage" and len(message.usage.items) > MAX_USAGE_ITEMS:
        return field_invalid("usage.items", f"at most {MAX_USAGE_ITEMS}")
    return None


def _held_scopes(scopes: Iterable[str], granted_role: Role) -> tuple[str, ...]:
    """Return the scopes of a key, each once.

    Raises:
        ValueError: A scope is malformed, there are too many, or the granted role carries none.
    """
    held = tuple(dict.fromkeys(strings("scopes", scopes)))
    if held and granted_role is Role.ADMIN:
        raise ValueError("a key with the granted role ADMIN meets every scope and carries none")
    if len(held) > MAX_SCOPES or not all(map(is_held_scope, held)):
        raise ValueError(f"scopes are at most {MAX_SCOPES}, as a.b or a.* or *: {held!r}")
    return held


def _known(outcome: int) -> Outcome:
    """Return an outcome; a number that this version does not know is UNSPECIFIED."""
    return Outcome(outcome) if outcome in set(Outcome) else Outcome.UNSPECIFIED


@contextlib.contextmanager
def _refusing(context: grpc.ServicerContext) -> Iterator[None]:
    """Refuse the call when the block raises _RefusedError."""
    try:
        yield
    except _RefusedError as refused:
        _abort(context, refused.denial)


def _abort(context: grpc.ServicerContext, denial: Denial) -> NoReturn:
    """Refuse the call."""
    context.set_trailing_metadata(denial.trailers())
    context.abort(denial.code, denial.message)
    raise RuntimeError("a call went on after it was aborted")


class _OwnVerifier:
    """Judges the callers of the fake itself."""

    def __init__(self, judge: Callable[[Presented], Verdict]) -> None:
        self._judge = judge

    def verify(self, presented: Presented) -> Verdict:
        return self._judge(presented)


class _TroubleInterceptor(grpc.ServerInterceptor):
    """Applies an outage or a stall to unary calls before anything else."""

    def __init__(self, apply_trouble: Callable[[grpc.ServicerContext], None]) -> None:
        self._apply_trouble = apply_trouble

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler

        def behaviour(request: Any, context: grpc.ServicerContext) -> Any:
            self._apply_trouble(context)
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            behaviour, handler.request_deserializer, handler.response_serializer
        )


_OUTCOMES = {
    Decision.ALLOWED: Outcome.VALID,
    Decision.ROLE_INSUFFICIENT: Outcome.ROLE_INSUFFICIENT,
    Decision.SCOPE_INSUFFICIENT: Outcome.SCOPE_INSUFFICIENT,
}
_OF_LIVE_KEYS = frozenset(_OUTCOMES.values())


def _describe(
    identity: Identity,
    response: token_service_pb2.ValidateTokenResponse | token_service_pb2.WhoAmIResponse,
) -> None:
    """Write an identity into a response."""
    response.key_id = identity.key_id
    response.key_name = identity.key_name
    response.account_id = identity.account_id
    response.owner_id = identity.owner_id
    response.owner_email = identity.owner_email
    response.owner_type = _number(identity.owner_type)
    response.granted_role = _number(identity.granted_role)
    response.effective_role = _number(identity.effective_role)
    response.scopes.extend(identity.scopes)
    response.labels.update(identity.labels)
    response.secret_version = identity.secret_version
    if identity.expire_time is not None:
        response.expire_time.CopyFrom(timestamp_of(identity.expire_time))


def _number(number: int) -> Any:
    """Return the number of an enum member; the generated code has a type of its own for it."""
    return int(number)


def _new_token(key_id: str) -> str:
    """Return a random token in the form of real ones."""
    secret = "".join(secrets.choice(BASE62) for _ in range(SECRET_LENGTH))
    return write_token(DEFAULT_PREFIX, key_id, secret)


try:
    import pytest
except ModuleNotFoundError:
    pass
else:

    @pytest.fixture
    def fake_keybearer() -> Iterator[FakeKeybearer]:
        """Run a FakeKeybearer during one test."""
        with FakeKeybearer() as keybearer:
            yield keybearer
