"""The parts of the service put together over one data directory, without a network."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from keybearer._wire.enums import AuditAction
from keybearer_service.domain.clock import Clock, SystemClock
from keybearer_service.domain.entropy import Entropy, SystemEntropy
from keybearer_service.domain.model import Installation
from keybearer_service.gateway.authorizer import Authorizer
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.installation.keyring import Keyring
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import FileStore, ServerStore, Store, StoreUnusableError
from keybearer_service.storage.sqlite import BUSY_TIMEOUT_S, PATIENCE_S, SqliteStore
from keybearer_service.telemetry.metrics import PrometheusMetrics
from keybearer_service.telemetry.recorder import NullRecorder, Recorder
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.audit import AuditHistory, AuditLog, RefusalLog
from keybearer_service.usecases.failures import Failures
from keybearer_service.usecases.identities import IdentityManager
from keybearer_service.usecases.issuing import KeyIssuer
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.mutations import Mutations
from keybearer_service.usecases.pagination import PageTokens
from keybearer_service.usecases.quotas import NO_QUOTAS, Quotas
from keybearer_service.usecases.revoking import KeyRevoker
from keybearer_service.usecases.sessions import SessionManager
from keybearer_service.usecases.sign_ins import SignInKeys, SignInManager
from keybearer_service.usecases.users import UserManager
from keybearer_service.validation.sessions import SessionValidator
from keybearer_service.validation.usage import UsageRecorder
from keybearer_service.validation.validator import Validator
from keybearer_service.watch.hub import MAX_WATCHERS, WatchHub

if TYPE_CHECKING:
    from keybearer_service.storage.postgres import PostgresStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """Every part, built once."""

    installation: Installation
    store: Store
    keyring: Keyring
    clock: Clock
    entropy: Entropy
    audit: AuditLog
    audit_history: AuditHistory
    refusals: RefusalLog
    failures: Failures
    mutations: Mutations
    issuer: KeyIssuer
    usage: UsageRecorder
    validator: Validator
    watches: WatchHub
    recorder: Recorder
    metrics: PrometheusMetrics | None
    """What is recorded, for ports that show it; None when no port does."""
    authorizer: Authorizer
    page_tokens: PageTokens
    keys: KeyManager
    revoker: KeyRevoker
    users: UserManager
    accounts: AccountManager
    sessions: SessionManager
    sign_ins: SignInManager
    identities: IdentityManager
    session_validator: SessionValidator
    sign_in_refusals: RefusalLog

    def close(self) -> None:
        """Write what is only in memory, and close the store."""
        self.usage.stop()
        self.refusals.flush_suppressed(everything=True)
        self.sign_in_refusals.flush_suppressed(everything=True)
        self.store.close()


def create_store(location: Path | DatabaseUrl) -> Store:
    """Create an empty store: a new file, or the tables in a database that is empty.

    Raises:
        StoreError: It cannot be created there.
    """
    if isinstance(location, Path):
        return SqliteStore.create(location)
    migrate_store(location)
    return open_store(location)


def open_store(
    location: Path | DatabaseUrl, *, shared: bool = False, is_patient: bool = False
) -> Store:
    """Open a store.

    Args:
        location: The file, or the database.
        shared: Whether other processes have the file open too.
        is_patient: Whether it is for a command: a statement may take as long as it needs, and a
            change of a file waits PATIENCE_S for those of a busy service.

    Raises:
        StoreError: It cannot be used; the text says why.
    """
    if isinstance(location, Path):
        limit_s = PATIENCE_S if is_patient else BUSY_TIMEOUT_S
        return SqliteStore(location, shared=shared, busy_timeout_s=limit_s)
    clock, entropy = SystemClock(), SystemEntropy()
    if is_patient:
        return _postgres_store()(location, clock=clock, entropy=entropy, limit_s=None)
    return _postgres_store()(location, clock=clock, entropy=entropy)


def open_departing_file(path: Path) -> FileStore:
    """Open a file that an installation leaves or has left, for the move alone.

    Raises:
        StoreError: It cannot be used; the text says why.
    """
    return SqliteStore(path, may_be_departed=True)


def create_server_store(url: DatabaseUrl) -> ServerStore:
    """Bring the tables of a database up to date and open it, for work that takes long.

    Raises:
        StoreError: It cannot be used; the text says why.
    """
    migrate_store(url)
    clock, entropy = SystemClock(), SystemEntropy()
    return _postgres_store()(url, clock=clock, entropy=entropy, limit_s=None)


def migrate_store(url: DatabaseUrl) -> list[str]:
    """Bring the schema of a database up to date; return the names of the steps that were done.

    Raises:
        StoreError: It cannot be done; the text says why.
    """
    return _postgres_store().migrate(url)


def _postgres_store() -> "type[PostgresStore]":
    try:
        from keybearer_service.storage.postgres import (  # noqa: PLC0415 - the driver is optional
            PostgresStore,
        )
    except ImportError as error:
        raise StoreUnusableError(
            f"the driver for PostgreSQL is missing ({error.name}); run: "
            "pip install 'keybearer[server,postgres]'"
        ) from None
    return PostgresStore


class StoreOpener(Protocol):
    """What opens the store of an installation, as `open_store` does."""

    def __call__(self, location: Any, /, *, shared: bool) -> Store:
        """Open the store at `DataDir.location`; `shared` when other processes use the file too.

        Raises:
            StoreError: It cannot be used; the text says why.
        """
        ...


def open_container(
    data_dir: DataDir,
    clock: Clock,
    entropy: Entropy,
    *,
    shared: bool = False,
    with_metrics: bool = False,
    max_watchers: int = MAX_WATCHERS,
    quotas: Quotas = NO_QUOTAS,
    opener: StoreOpener = open_store,
) -> Container:
    """Open an installation, that other servers may have open too when it is `shared`.

    Args:
        data_dir: The installation.
        clock: The time.
        entropy: The randomness.
        shared: Whether other servers write to the store too.
        with_metrics: Whether a port shows metrics.
        max_watchers: The most watch streams that are open at a time.
        quotas: How much an account may hold.
        opener: What opens the store.

    Raises:
        DataDirError, StoreError, KeyringError: It cannot be used; the text says why.
    """
    data_dir.assert_initialised()
    keyring = Keyring(data_dir.peppers)
    store = opener(data_dir.location, shared=shared)
    try:
        return build_container(
            store,
            keyring,
            clock,
            entropy,
            with_metrics=with_metrics,
            max_watchers=max_watchers,
            quotas=quotas,
        )
    except BaseException:
        store.close()
        raise


def build_container(
    store: Store,
    keyring: Keyring,
    clock: Clock,
    entropy: Entropy,
    *,
    with_metrics: bool = False,
    max_watchers: int = MAX_WATCHERS,
    quotas: Quotas = NO_QUOTAS,
) -> Container:
    """Put the parts together over an open store.

    Raises:
        StoreError, KeyringError: The store is empty, or a pepper is not its own.
    """
    with store.read() as reader:
        installation = reader.installation()
        keyring.verify(reader.peppers(), lambda one: reader.live_secrets(one, clock.now()))
    metrics = PrometheusMetrics() if with_metrics else None
    recorder: Recorder = metrics or NullRecorder()
    audit = AuditLog(keyring.audit_key, entropy)
    issuer = KeyIssuer(keyring, entropy, installation.prefix)
    usage = UsageRecorder(store)
    page_tokens = PageTokens(keyring.derived_key(b"page tokens"))
    sign_in_keys = SignInKeys(
        sessions=keyring.derived_key(b"sessions"),
        identities=keyring.derived_key(b"identities"),
        invitations=keyring.derived_key(b"invitations"),
    )
    prefixes = frozenset((installation.prefix, *installation.retired_prefixes))
    validator = Validator(store, keyring, usage, clock, entropy, prefixes)
    proofs = store if isinstance(store, ServerStore) else None
    watches = WatchHub(store, usage, clock, entropy, max_watchers=max_watchers, proofs=proofs)
    mutations = Mutations(store, audit, clock)
    keys = KeyManager(store, mutations, issuer, page_tokens, quotas, clock)
    return Container(
        installation=installation,
        store=store,
        keyring=keyring,
        clock=clock,
        entropy=entropy,
        audit=audit,
        failures=Failures(clock),
        audit_history=AuditHistory(store, page_tokens),
        refusals=RefusalLog(store, audit, clock, installation.operator_account_id),
        mutations=mutations,
        issuer=issuer,
        usage=usage,
        validator=validator,
        watches=watches,
        recorder=recorder,
        metrics=metrics,
        authorizer=Authorizer(validator, recorder, clock),
        page_tokens=page_tokens,
        keys=keys,
        revoker=KeyRevoker(store, mutations, validator, keys),
        users=UserManager(store, mutations, issuer, page_tokens, quotas),
        accounts=AccountManager(store, mutations, issuer, page_tokens),
        sessions=SessionManager(store, mutations, sign_in_keys.sessions, clock, entropy),
        session_validator=SessionValidator(
            store, sign_in_keys.sessions, sign_in_keys.identities, clock
        ),
        sign_ins=SignInManager(store, mutations, sign_in_keys, entropy),
        identities=IdentityManager(store, mutations, sign_in_keys, clock, entropy),
        sign_in_refusals=RefusalLog(
            store, audit, clock, installation.operator_account_id, AuditAction.SIGN_IN_REFUSED
        ),
    )
