"""A running service for tests: the real server on a free port, and the stubs to call it with."""

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import postgres_server
from keybearer.v1 import (
    account_service_pb2,
    account_service_pb2_grpc,
    api_key_pb2,
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    audit_event_pb2,
    audit_service_pb2,
    audit_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
    user_pb2,
    user_service_pb2,
    user_service_pb2_grpc,
)
from keybearer_service.app import App, AppConfig
from keybearer_service.container import StoreOpener, create_store, open_container, open_store
from keybearer_service.domain.clock import Clock, SystemClock
from keybearer_service.domain.entropy import Entropy, SystemEntropy
from keybearer_service.http.listeners import HttpConfig
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.net.addresses import Address, Listener
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.offline.initialise import initialise as initialise_offline
from keybearer_service.storage import Store
from keybearer_service.storage.sqlite import SqliteStore
from keybearer_service.usecases.accounts import CreatedAccount, NewAccount
from keybearer_service.usecases.issuing import Expiration
from keybearer_service.usecases.quotas import NO_QUOTAS, Quotas
from keybearer_service.watch.hub import MAX_WATCHERS

ON_POSTGRES = os.environ.get("KEYBEARER_TEST_BACKEND") == "postgres"
"""Whether services run over a database on PostgreSQL instead of a file."""
NODES = int(os.environ.get("KEYBEARER_TEST_NODES") or 1)
"""Over how many nodes the calls to a service go, at random; several need PostgreSQL."""
SEED = int(os.environ.get("KEYBEARER_TEST_SEED") or 1)
CALL_TIMEOUT_S = 10.0
ANY_PORT = Listener(address=Address("127.0.0.1", 0))
NO_HTTP = HttpConfig()
HOT_LOOP = os.environ.get("KEYBEARER_TEST_HOT_LOOP", "on") == "on"
"""Whether the hot methods of the services of this run have a thread of their own."""

M = TypeVar("M")


def message(make: Callable[..., M], **fields: Any) -> M:
    """Make a message from plain values: names of enums, dicts, timedeltas, lists."""
    return make(**fields)


@dataclass
class Refusal:
    """What a refused call answered."""

    code: grpc.StatusCode
    reason: str
    message: str
    fields: list[str]
    metadata: dict[str, str]
    retry_after: float | None


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Read a refused call's status and details."""
    status = rpc_status.from_call(cast("grpc.Call", error))
    refusal = Refusal(error.code(), "", error.details() or "", [], {}, None)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            assert info.domain == "keybearer.v1"
            refusal.reason = info.reason
            refusal.metadata = dict(info.metadata)
        elif detail.Unpack(bad):
            refusal.fields = [one.field for one in bad.field_violations]
        elif detail.Unpack(retry):
            refusal.retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return refusal


def refused(call: Callable[[], Any]) -> Refusal:
    """Make a call that must be refused, and answer how it was."""
    try:
        call()
    except grpc.RpcError as error:
        return refusal_of(error)
    raise AssertionError("the call was not refused")


class SeenError(NamedTuple):
    """An error of ours that a call was answered with."""

    method: str
    code: str
    reason: str
    fields: tuple[str, ...]
    """The fields that it names."""


SEEN_ERRORS: set[SeenError] = set()
"""What the calls over the channels of a Service were answered with."""


class _ErrorRecorder(
    grpc.UnaryUnaryClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Remembers the errors of every call of a channel."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return self._remembered(details.method, continuation(details, request))

    def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return self._remembered(details.method, continuation(details, requests))

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return self._remembered(details.method, continuation(details, requests))

    def _remembered(self, method: str, call: Any) -> Any:
        call.add_done_callback(lambda done: self._remember(method, done))
        return call

    @staticmethod
    def _remember(method: str, done: Any) -> None:
        if done.code() is not grpc.StatusCode.OK:
            refusal = refusal_of(done)
            if refusal.reason:
                SEEN_ERRORS.add(
                    SeenError(method, refusal.code.name, refusal.reason, tuple(refusal.fields))
                )


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token to every call of a channel, and a deadline to every unary one."""

    def __init__(self, token: str) -> None:
        self._token = token

    def _with_token(self, details: Any, timeout: float | None) -> Any:
        metadata = [*(details.metadata or ()), ("authorization", f"Bearer {self._token}")]
        return details._replace(metadata=metadata, timeout=details.timeout or timeout)

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_token(details, CALL_TIMEOUT_S), request)

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(self._with_token(details, None), requests)


class Stubs:
    """Every service, called with one token."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self.token = token
        guarded = grpc.intercept_channel(channel, _Bearer(token))
        self.accounts = account_service_pb2_grpc.AccountServiceStub(guarded)
        self.users = user_service_pb2_grpc.UserServiceStub(guarded)
        self.keys = api_key_service_pb2_grpc.ApiKeyServiceStub(guarded)
        self.tokens = token_service_pb2_grpc.TokenServiceStub(guarded)
        self.audit = audit_service_pb2_grpc.AuditServiceStub(guarded)

    def create_key(self, **fields: Any) -> api_key_service_pb2.CreateApiKeyResponse:
        """Make a DEVELOPER key that never expires, unless told otherwise."""
        fields.setdefault("name", "a key")
        fields.setdefault("role", "ROLE_DEVELOPER")
        if not {"ttl", "expire_time", "never_expires"} & set(fields):
            fields["never_expires"] = True
        return self.keys.CreateApiKey(api_key_service_pb2.CreateApiKeyRequest(**fields))

    def create_user(self, email: str, **fields: Any) -> user_pb2.User:
        """Make an ADMIN, unless told otherwise."""
        fields.setdefault("display_name", email)
        fields.setdefault("role", "ROLE_ADMIN")
        fields.setdefault("type", "USER_TYPE_PERSON")
        request = user_service_pb2.CreateUserRequest(email=email, **fields)
        return self.users.CreateUser(request).user

    def key(self, key_id: str) -> api_key_pb2.ApiKey:
        """Read a key."""
        return self.keys.GetApiKey(api_key_service_pb2.GetApiKeyRequest(id=key_id)).api_key

    def validate(self, token: str, **fields: Any) -> token_service_pb2.ValidateTokenResponse:
        """Validate a token."""
        return self.tokens.ValidateToken(
            token_service_pb2.ValidateTokenRequest(token=token, **fields)
        )

    def outcome(self, token: str, **fields: Any) -> str:
        """Validate a token; answer the outcome's name without its prefix."""
        outcome = self.validate(token, **fields).outcome
        name = token_service_pb2.ValidationOutcome.Name(outcome)
        return name.removeprefix("VALIDATION_OUTCOME_")

    def list_keys(self, **fields: Any) -> api_key_service_pb2.ListApiKeysResponse:
        """List keys."""
        return self.keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(**fields))

    def update_key(
        self, key_id: str, values: dict[str, Any] | None = None, **fields: Any
    ) -> api_key_pb2.ApiKey:
        """Update the fields of a key that `values` names; `paths` may say others."""
        values = values or {}
        paths = fields.pop("paths", list(values))
        return self.keys.UpdateApiKey(
            message(
                api_key_service_pb2.UpdateApiKeyRequest,
                api_key={"id": key_id, **values},
                update_mask={"paths": paths},
                **fields,
            )
        ).api_key

    def disable_key(self, key_id: str) -> api_key_pb2.ApiKey:
        """Switch a key off."""
        return self.keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(id=key_id)).api_key

    def enable_key(self, key_id: str) -> api_key_pb2.ApiKey:
        """Switch a key on."""
        return self.keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(id=key_id)).api_key

    def rotate(self, key_id: str, **fields: Any) -> api_key_service_pb2.RotateApiKeyResponse:
        """Give a key a new secret."""
        return self.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(id=key_id, **fields))

    def revoke(
        self, key_id: str, reason: str = "REVOCATION_REASON_LOST", **fields: Any
    ) -> api_key_pb2.ApiKey:
        """Kill a key."""
        return self.keys.RevokeApiKey(
            message(api_key_service_pb2.RevokeApiKeyRequest, id=key_id, reason=reason, **fields)
        ).api_key

    def revoke_keys(
        self, *key_ids: str, reason: str = "REVOCATION_REASON_LOST", **fields: Any
    ) -> api_key_service_pb2.RevokeApiKeysResponse:
        """Kill several keys, by their ids or by a `filter`."""
        return self.keys.RevokeApiKeys(
            message(api_key_service_pb2.RevokeApiKeysRequest, ids=key_ids, reason=reason, **fields),
            timeout=60,
        )

    def user(self, user_id: str) -> user_pb2.User:
        """Read a user."""
        return self.users.GetUser(user_service_pb2.GetUserRequest(id=user_id)).user

    def list_users(self, **fields: Any) -> user_service_pb2.ListUsersResponse:
        """List users."""
        return self.users.ListUsers(user_service_pb2.ListUsersRequest(**fields))

    def update_user(
        self, user_id: str, values: dict[str, Any] | None = None, **fields: Any
    ) -> user_pb2.User:
        """Update the fields of a user that `values` names; `paths` may say others."""
        values = values or {}
        paths = fields.pop("paths", list(values))
        return self.users.UpdateUser(
            message(
                user_service_pb2.UpdateUserRequest,
                user={"id": user_id, **values},
                update_mask={"paths": paths},
                **fields,
            )
        ).user

    def delete_user(self, user_id: str, **fields: Any) -> user_service_pb2.DeleteUserResponse:
        """Delete a user."""
        return self.users.DeleteUser(user_service_pb2.DeleteUserRequest(id=user_id, **fields))

    def who_am_i(self) -> token_service_pb2.WhoAmIResponse:
        """Ask who calls."""
        return self.tokens.WhoAmI(token_service_pb2.WhoAmIRequest())

    def rotate_self(self, **fields: Any) -> token_service_pb2.RotateSelfResponse:
        """Give the calling key a new secret."""
        return self.tokens.RotateSelf(token_service_pb2.RotateSelfRequest(**fields))

    def revoke_token(self, token: str) -> token_service_pb2.RevokeTokenResponse:
        """Revoke what a token opens."""
        return self.tokens.RevokeToken(token_service_pb2.RevokeTokenRequest(token=token))

    def create_account(
        self, name: str = "tenant", **fields: Any
    ) -> account_service_pb2.CreateAccountResponse:
        """Make an account with its first administrator."""
        fields.setdefault("admin_email", f"admin@{name}.example.com")
        fields.setdefault("admin_display_name", f"Admin of {name}")
        return self.accounts.CreateAccount(
            account_service_pb2.CreateAccountRequest(name=name, **fields)
        )

    def events(self, **fields: Any) -> list[audit_event_pb2.AuditEvent]:
        """List audit events, newest first."""
        request = message(audit_service_pb2.ListAuditEventsRequest, **fields)
        return list(self.audit.ListAuditEvents(request).audit_events)


class AnyChannel(grpc.Channel):
    """Channels to several nodes, one of which is drawn for each method that is asked for.

    A channel with interceptors asks anew for every call.
    """

    def __init__(self, channels: Sequence[grpc.Channel], chance: random.Random) -> None:
        self._channels = channels
        self._chance = chance

    def unary_unary(self, *arguments: Any, **keywords: Any) -> Any:
        return self._drawn.unary_unary(*arguments, **keywords)

    def unary_stream(self, *arguments: Any, **keywords: Any) -> Any:
        return self._drawn.unary_stream(*arguments, **keywords)

    def stream_unary(self, *arguments: Any, **keywords: Any) -> Any:
        return self._drawn.stream_unary(*arguments, **keywords)

    def stream_stream(self, *arguments: Any, **keywords: Any) -> Any:
        return self._drawn.stream_stream(*arguments, **keywords)

    def subscribe(self, *arguments: Any, **keywords: Any) -> None:
        self._channels[0].subscribe(*arguments, **keywords)

    def unsubscribe(self, *arguments: Any) -> None:
        self._channels[0].unsubscribe(*arguments)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def _drawn(self) -> grpc.Channel:
        return self._chance.choice(self._channels)


@dataclass
class Service:
    """A running service and who may call it."""

    app: App
    data_dir: DataDir
    admin_token: str
    account_id: str
    admin_user_id: str
    admin_key_id: str
    others: Sequence[App] = ()
    """Further nodes over the same database."""
    _channels: list[grpc.Channel] = field(default_factory=list)
    _chance: random.Random = field(default_factory=lambda: random.Random(SEED))

    @property
    def only_node(self) -> App:
        """The one node, for a look into it; skip where the calls go to several."""
        if self.others:
            pytest.skip("looks into a node, and the calls of this run go to several")
        return self.app

    def flush_uses(self) -> None:
        """Have every node write the uses that it has counted."""
        for app in (self.app, *self.others):
            app.container.usage.flush()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.app.port}"

    def channel(self, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
        """Open a channel; it is closed with the service."""
        channels = [
            grpc.insecure_channel(f"127.0.0.1:{app.port}", options=list(options))
            for app in (self.app, *self.others)
        ]
        channel = AnyChannel(channels, self._chance) if self.others else channels[0]
        self._channels.append(channel)
        return grpc.intercept_channel(channel, _ErrorRecorder())

    def as_token(self, token: str) -> Stubs:
        """Return stubs that call with a token."""
        return Stubs(self.channel(), token)

    @property
    def admin(self) -> Stubs:
        """Stubs that call as the operator's first administrator."""
        return self.as_token(self.admin_token)

    def tenant(self, name: str = "tenant") -> "Tenant":
        """Make another account."""
        made = self.admin.create_account(name)
        return Tenant(
            account_id=made.account.id,
            user_id=made.user.id,
            key_id=made.api_key.id,
            stubs=self.as_token(made.token),
        )

    def with_role(self, role: str, **fields: Any) -> Stubs:
        """Return stubs that call with a new key of the first administrator."""
        return self.as_token(self.admin.create_key(role=role, **fields).token)

    def restart(self) -> None:
        """Serve the same data anew; stubs of before are of no use any more."""
        if self.others:
            pytest.skip("begins again, which is looked at with one node")
        container = self.app.container
        self.close()
        self.app = make_app(self.data_dir, container.clock, container.entropy)
        self.app.start()

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        for app in (self.app, *self.others):
            app.stop(grace_s=0)


@dataclass
class Tenant:
    """An account that is not the operator's, and its first administrator."""

    account_id: str
    user_id: str
    key_id: str
    stubs: Stubs


def initialise(
    path: Path, clock: Clock, entropy: Entropy, *, on_postgres: bool = ON_POSTGRES
) -> tuple[DataDir, CreatedAccount]:
    """Make an installation in an empty directory."""
    data_dir = DataDir(path, postgres_server.new_database(is_empty=True) if on_postgres else None)
    created = initialise_offline(
        data_dir,
        NewAccount(
            name="operator",
            admin_email="admin@example.com",
            admin_display_name="Admin",
            expiration=Expiration(),
        ),
        "kbear1",
        create_store=create_store,
        clock=clock,
        entropy=entropy,
    )
    return data_dir, created


def file_of(service: Service) -> Path:
    """Return the database file of a service, for a look behind its back; skip where it has none."""
    if service.data_dir.url is not None:
        pytest.skip("looks into the file of a service, and this one has a database elsewhere")
    return service.data_dir.database


class _Replaceable:
    @contextmanager
    def replacing(self, **methods: Callable[..., Any]) -> Iterator[None]:
        """Have these methods in the place of the store's own, until the end of the block."""
        before = {name: vars(self)[name] for name in methods if name in vars(self)}
        vars(self).update(methods)
        try:
            yield
        finally:
            for name in methods:
                del vars(self)[name]
            vars(self).update(before)


class _ReplaceableSqliteStore(_Replaceable, SqliteStore):
    """A file."""


class ReplaceableStore(Store, Protocol):
    """A store some of whose methods a test replaces for a while."""

    def replacing(self, **methods: Callable[..., Any]) -> AbstractContextManager[None]:
        """Have these methods in the place of the store's own, until the end of the block."""
        ...


def open_replaceable(location: Path | DatabaseUrl, *, shared: bool = False) -> ReplaceableStore:
    """Open a store of which a test replaces methods."""
    if isinstance(location, Path):
        return _ReplaceableSqliteStore(location, shared=shared)
    from keybearer_service.storage.postgres import PostgresStore  # noqa: PLC0415 - needs psycopg

    of_postgres = type("ReplaceablePostgresStore", (_Replaceable, PostgresStore), {})
    opened: ReplaceableStore = of_postgres(location, clock=SystemClock(), entropy=SystemEntropy())
    return opened


def store_of(app: App) -> ReplaceableStore:
    """Return the store of a service that was opened with `opener=open_replaceable`."""
    store = app.container.store
    assert isinstance(store, _Replaceable)
    return cast("ReplaceableStore", store)


def raising(error: BaseException) -> Callable[..., Any]:
    """Return a method that raises an error."""

    def fail(*_arguments: Any, **_keywords: Any) -> Any:
        raise error

    return fail


def make_app(
    data_dir: DataDir,
    clock: Clock,
    entropy: Entropy,
    *,
    listener: Listener = ANY_PORT,
    http: HttpConfig = NO_HTTP,
    reflection: bool = True,
    hot_loop: bool = HOT_LOOP,
    shared: bool = False,
    on_fatal: Callable[[], None] = lambda: None,
    max_watchers: int = MAX_WATCHERS,
    quotas: Quotas = NO_QUOTAS,
    opener: StoreOpener = open_store,
) -> App:
    """Build the service over an installation, on a free port unless told otherwise."""
    container = open_container(
        data_dir,
        clock,
        entropy,
        shared=shared,
        with_metrics=http.is_served,
        max_watchers=max_watchers,
        quotas=quotas,
        opener=opener,
    )
    config = AppConfig(listener=listener, http=http, reflection=reflection, hot_loop=hot_loop)
    return App(container, config, on_fatal=on_fatal)


def another_node(
    data_dir: DataDir, number: int, clock: Clock, entropy: Entropy, quotas: Quotas
) -> App:
    """Start one more node over the database of an installation, with copies of its key files."""
    directory = data_dir.path.with_name(f"{data_dir.path.name}-{number}")
    directory.mkdir(mode=0o700)
    shutil.copytree(data_dir.path / "peppers", directory / "peppers")
    app = make_app(DataDir(directory, data_dir.url), clock, entropy, quotas=quotas)
    app.start()
    return app


@contextmanager
def running(
    path: Path,
    clock: Clock,
    entropy: Entropy,
    *,
    shared: bool = False,
    hot_loop: bool = HOT_LOOP,
    on_postgres: bool = ON_POSTGRES,
    max_watchers: int = MAX_WATCHERS,
    quotas: Quotas = NO_QUOTAS,
    opener: StoreOpener = open_store,
    http: HttpConfig = NO_HTTP,
    on_fatal: Callable[[], None] = lambda: None,
) -> Iterator[Service]:
    """Run a fresh service; `shared` as one of several servers of the same data."""
    data_dir, created = initialise(path, clock, entropy, on_postgres=on_postgres)
    app = make_app(
        data_dir,
        clock,
        entropy,
        http=http,
        on_fatal=on_fatal,
        shared=shared,
        hot_loop=hot_loop,
        max_watchers=max_watchers,
        quotas=quotas,
        opener=opener,
    )
    app.start()
    others = [
        another_node(data_dir, number, clock, entropy, quotas)
        for number in range(2, NODES + 1)
        if data_dir.url is not None
    ]
    service = Service(
        app=app,
        others=others,
        data_dir=data_dir,
        admin_token=created.issued.token,
        account_id=created.account.id,
        admin_user_id=created.user.id,
        admin_key_id=created.issued.key.id,
    )
    try:
        yield service
    finally:
        service.close()
        if data_dir.url is not None:
            postgres_server.drop_database(data_dir.url)
