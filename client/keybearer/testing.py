"""A keybearer for the tests of those who depend on it: a real gRPC server with made-up keys.

    with FakeKeybearer() as keybearer:
        token = keybearer.issue(Role.DEVELOPER, scopes=["clusters.read"])
        server = grpc.server(pool, interceptors=[AuthInterceptor(keybearer.verifier())])
        ...
        keybearer.revoke(token)

It answers every outcome, its clock stands until it is moved, it tells of changes those who keep
answers, and it can be out of order. For
pytest, `pytest_plugins = ["keybearer.testing"]` brings it as the fixture `fake_keybearer`; pytest
is not needed otherwise. It keeps no accounts, users or audit log: to test the management of keys,
start the service itself.
"""

import contextlib
import queue
import secrets
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

import grpc

from keybearer._client.client import AsyncKeybearerClient, KeybearerClient
from keybearer._client.verifier import AsyncRemoteVerifier, RemoteVerifier
from keybearer._guard.guard import Denial, current_identity
from keybearer._guard.interceptor import AuthInterceptor
from keybearer.access import AccessRule, Decision, Role, decide
from keybearer.models import Identity, Outcome, UserType, Verdict, stamp_of
from keybearer.v1 import token_service_pb2

ACCOUNT_ID: Final = "FakeAccount00001"
"""The account of keys that are issued without naming one, and of the validator."""
OWNER_ID: Final = "FakeOwner0000001"
"""The owner of keys that are issued without naming one."""
START: Final = datetime(2030, 1, 1, tzinfo=UTC)
"""What the clock shows first."""
CACHE_FOR: Final = timedelta(seconds=60)
NEGATIVE_CACHE_FOR: Final = timedelta(seconds=1)

_Request = token_service_pb2.WatchInvalidationsRequest
_Response = token_service_pb2.WatchInvalidationsResponse
_Heard = _Response | _Request.Ping | None
"""What a watch stream has to deal with: an answer to send, a ping, or the end."""

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class _Key:
    identity: Identity
    state: Outcome = Outcome.VALID
    """VALID, REVOKED or DISABLED; whether it has expired is the clock's to say."""
    forced: int | None = None
    """An outcome to answer whatever the facts."""


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
        self._watches: set[queue.SimpleQueue[_Heard]] = set()
        self._clients: list[KeybearerClient] = []
        self.validator_token = self.issue(Role.VALIDATOR, name="validator")
        """A credential that may ask about tokens."""
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=32, thread_name_prefix="fake-keybearer"),
            interceptors=[
                _Troubled(self._feel_trouble),
                AuthInterceptor(_Own(self._judge_own), rejudge_after=0.5),
            ],
            options=(("grpc.so_reuseport", 0),),
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{port}"
        """Where it listens."""

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
        """Stop listening and end all calls; from now on connections are refused."""
        self._server.stop(None).wait()
        for client in self._clients:
            client.close()

    def verifier(self, *, account_id: str = "", timeout: float = 2.0) -> RemoteVerifier:
        """Answer a verifier that asks this server; closed with it."""
        client = KeybearerClient(self.address, token=self.validator_token, tls=False)
        self._clients.append(client)
        return RemoteVerifier(client, account_id=account_id, timeout=timeout)

    def async_verifier(self, *, account_id: str = "", timeout: float = 2.0) -> AsyncRemoteVerifier:
        """Answer a verifier for asyncio that asks this server."""
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
        """Make a key and answer its token.

        Args:
            role: The effective role.
            scopes: Of the key.
            name: Of the key.
            labels: Of the key.
            expires_in: From what the clock shows now; None: never.
            owner_id: Whose key it is.
            owner_email: For display.
            account_id: Whose account it is.
            granted_role: When it is not the effective role.
        """
        with self._lock:
            identity = Identity(
                key_id=secrets.token_hex(8),
                account_id=account_id,
                owner_id=owner_id,
                effective_role=role,
                granted_role=role if granted_role is None else granted_role,
                scopes=tuple(scopes),
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
        """Answer whose token it is.

        Raises:
            KeyError: It was not issued here.
        """
        with self._lock:
            return self._keys[token].identity

    def revoke(self, token: str) -> None:
        """Make a token answer REVOKED from now on."""
        self._change(token, state=Outcome.REVOKED)

    def disable(self, token: str) -> None:
        """Make a token answer DISABLED until it is enabled."""
        self._change(token, state=Outcome.DISABLED)

    def enable(self, token: str) -> None:
        """Undo `disable`."""
        self._change(token, state=Outcome.VALID)

    def change(
        self, token: str, *, role: Role | None = None, scopes: Iterable[str] | None = None
    ) -> None:
        """Change the effective role or the scopes; None leaves them."""
        with self._lock:
            identity = self._keys[token].identity
            if role is not None:
                identity = replace(identity, effective_role=role)
            if scopes is not None:
                identity = replace(identity, scopes=tuple(scopes))
            self._change(token, identity=identity)

    def force(self, token: str, outcome: int | None) -> None:
        """Answer this outcome for a token whatever the facts, also a number that does not exist.

        None goes back to the facts.
        """
        self._change(token, forced=outcome)

    @property
    def now(self) -> datetime:
        """What the clock shows. It stands until `advance`."""
        with self._lock:
            return self._now

    def advance(self, by: timedelta) -> None:
        """Move the clock. Those who keep answers are told to forget them."""
        with self._lock:
            self._now += by
            self._tell(everything=True)

    @property
    def questions(self) -> int:
        """How many tokens it was asked about so far."""
        with self._lock:
            return self._questions

    @contextlib.contextmanager
    def outage(
        self,
        code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        reason: str = "STORE_UNAVAILABLE",
    ) -> Iterator[None]:
        """Let every call fail, with UNAVAILABLE unless another code is given."""
        denial = Denial(code=code, reason=reason, message="out of order", retry_after=1.0)

        def fail(context: grpc.ServicerContext) -> None:
            context.set_trailing_metadata(denial.trailers())
            context.abort(denial.code, denial.message)

        with self._troubled(fail):
            yield

    @contextlib.contextmanager
    def stall(self) -> Iterator[None]:
        """Let every call hang, until the block ends or its caller gives up."""
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

    def _feel_trouble(self, context: grpc.ServicerContext) -> None:
        """Let a call feel what is wrong at the moment, if anything is."""
        trouble = self._trouble
        if trouble is not None:
            trouble(context)

    def _change(self, token: str, **changes: Any) -> None:
        with self._lock:
            key = self._keys[token] = replace(self._keys[token], **changes)
            self._tell(key_id=key.identity.key_id)

    def _tell(self, **subject: Any) -> None:
        """Count a change, and tell it to those who watch."""
        self._revision += 1
        invalidation = _Response.Invalidation(revision=self._revision, **subject)
        for heard in self._watches:
            heard.put(_Response(invalidation=invalidation))

    def _judge(self, token: str, account_id: str, rule: AccessRule) -> tuple[int, Identity | None]:
        """Answer outcome and identity, in the order of section 3 of the wire contract."""
        key = self._keys.get(token)
        if key is None or account_id not in ("-", key.identity.account_id):
            return Outcome.NOT_FOUND, None
        identity = key.identity
        outcome = _OUTCOMES[decide(rule, identity.effective_role, identity.scopes)]
        if key.forced is not None:
            return key.forced, identity
        if key.state is Outcome.REVOKED:
            outcome = Outcome.REVOKED
        elif identity.expire_time is not None and self._now >= identity.expire_time:
            outcome = Outcome.EXPIRED
        elif key.state is Outcome.DISABLED:
            outcome = Outcome.DISABLED
        return outcome, identity

    def _judge_own(self, token: str) -> Verdict:
        with self._lock:
            outcome, identity = self._judge(token, "-", AccessRule())
        known = outcome in set(Outcome)
        return Verdict(
            outcome=Outcome(outcome) if known else Outcome.UNSPECIFIED, identity=identity
        )

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
        self, request: token_service_pb2.ValidateTokenRequest, _: grpc.ServicerContext
    ) -> token_service_pb2.ValidateTokenResponse:
        asker = current_identity()
        rule = AccessRule(role=Role(request.required_role), scopes=tuple(request.required_scopes))
        with self._lock:
            self._questions += 1
            account_id = request.account_id or asker.account_id
            outcome, identity = self._judge(request.token, account_id, rule)
            valid = outcome == Outcome.VALID
            response = token_service_pb2.ValidateTokenResponse(
                valid=valid, outcome=_number(outcome), revision=self._revision
            )
            cache_for = CACHE_FOR if valid else NEGATIVE_CACHE_FOR
            if identity is not None:
                _describe(identity, response)
                if valid and identity.expire_time is not None:
                    cache_for = min(cache_for, identity.expire_time - self._now)
            response.cache_for.FromTimedelta(cache_for)
            return response

    def _batch_validate_tokens(
        self, request: token_service_pb2.BatchValidateTokensRequest, context: grpc.ServicerContext
    ) -> token_service_pb2.BatchValidateTokensResponse:
        with self._lock:
            return token_service_pb2.BatchValidateTokensResponse(
                responses=[self._validate_token(question, context) for question in request.requests]
            )

    def _who_am_i(
        self, _: token_service_pb2.WhoAmIRequest, __: grpc.ServicerContext
    ) -> token_service_pb2.WhoAmIResponse:
        response = token_service_pb2.WhoAmIResponse(valid=True, outcome=_number(Outcome.VALID))
        _describe(current_identity(), response)
        return response

    def _revoke_token(
        self, request: token_service_pb2.RevokeTokenRequest, _: grpc.ServicerContext
    ) -> token_service_pb2.RevokeTokenResponse:
        with contextlib.suppress(KeyError):
            self.revoke(request.token)
        return token_service_pb2.RevokeTokenResponse()

    def _watch_invalidations(
        self,
        requests: Iterator[_Request],
        context: grpc.ServicerContext,
    ) -> Iterator[_Response]:
        """Answer every ping, behind the changes before it; section 4 of the wire contract."""
        heard: queue.SimpleQueue[_Heard] = queue.SimpleQueue()
        subscribe = next(requests).subscribe
        with self._lock:
            self._watches.add(heard)
            head = self._revision

        def end() -> None:
            with self._lock:
                self._watches.discard(heard)
            heard.put(None)

        if not context.add_callback(end):
            end()
        # It keeps no changes: whoever was away is told to forget everything.
        if subscribe.epoch:
            yield _Response(reset=_Response.Reset(epoch=self._epoch, head_revision=head))
        else:
            yield _Response(hello=_Response.Hello(epoch=self._epoch, head_revision=head))
        threading.Thread(target=_listen, args=(requests, heard), daemon=True).start()
        while (one := heard.get()) is not None:
            if isinstance(one, _Response):
                yield one
                continue
            self._feel_trouble(context)
            with self._lock:
                # Every change up to this head is in the queue before it.
                pong = _Response.Pong(sent_at=one.sent_at, head_revision=self._revision)
                heard.put(_Response(pong=pong))


def _listen(requests: Iterator[_Request], heard: "queue.SimpleQueue[_Heard]") -> None:
    """Pass on the pings of a stream; what was used is of no interest here."""
    with contextlib.suppress(Exception):
        for request in requests:
            if request.HasField("ping"):
                heard.put(request.ping)
    heard.put(None)


class _Own:
    """Judges the credentials of those who call the fake itself."""

    def __init__(self, judge: Callable[[str], Verdict]) -> None:
        self._judge = judge

    def verify(self, token: str) -> Verdict:
        return self._judge(token)


class _Troubled(grpc.ServerInterceptor):
    """Lets calls feel the trouble before anything else happens to them."""

    def __init__(self, feel_trouble: Callable[[grpc.ServicerContext], None]) -> None:
        self._feel_trouble = feel_trouble

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler

        def behaviour(request: Any, context: grpc.ServicerContext) -> Any:
            self._feel_trouble(context)
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            behaviour, handler.request_deserializer, handler.response_serializer
        )


_OUTCOMES = {
    Decision.ALLOWED: Outcome.VALID,
    Decision.ROLE_INSUFFICIENT: Outcome.ROLE_INSUFFICIENT,
    Decision.SCOPE_INSUFFICIENT: Outcome.SCOPE_INSUFFICIENT,
}


def _describe(
    identity: Identity,
    response: token_service_pb2.ValidateTokenResponse | token_service_pb2.WhoAmIResponse,
) -> None:
    """Write an identity into an answer."""
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
        response.expire_time.CopyFrom(stamp_of(identity.expire_time))


def _number(number: int) -> Any:
    """Answer an enum's number as the generated code wants it, of a type of its own."""
    return int(number)


def _new_token(key_id: str) -> str:
    """Draw a token in the form of real ones."""
    secret = "".join(secrets.choice(_BASE62) for _ in range(43))
    body = f"kbear1_{key_id}_{secret}"
    rest, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        digits = _BASE62[digit] + digits
    return body + digits


try:
    import pytest
except ModuleNotFoundError:
    pass
else:

    @pytest.fixture
    def fake_keybearer() -> Iterator[FakeKeybearer]:
        """Start a FakeKeybearer for one test."""
        with FakeKeybearer() as keybearer:
            yield keybearer
