"""The parts of the service put together over one data directory, without a network."""

from dataclasses import dataclass

from keybearer_service.domain.clock import Clock
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.model import Installation
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.installation.keyring import Keyring
from keybearer_service.storage import Store
from keybearer_service.storage.sqlite import SqliteStore
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.audit import AuditLog, RefusalLog
from keybearer_service.usecases.issuing import Mint
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.mutations import Changes
from keybearer_service.usecases.pagination import PageTokens
from keybearer_service.usecases.users import UserManager
from keybearer_service.validation.usage import UsageRecorder
from keybearer_service.validation.validator import Validator
from keybearer_service.watch.hub import WatchHub


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """Every part, built once."""

    installation: Installation
    store: Store
    keyring: Keyring
    clock: Clock
    entropy: Entropy
    audit: AuditLog
    refusals: RefusalLog
    changes: Changes
    mint: Mint
    usage: UsageRecorder
    validator: Validator
    watches: WatchHub
    page_tokens: PageTokens
    keys: KeyManager
    users: UserManager
    accounts: AccountManager

    def close(self) -> None:
        """Write what is only in memory, and close the store."""
        self.usage.stop()
        self.refusals.flush(everything=True)
        self.store.close()


def open_core(data_dir: DataDir, clock: Clock, entropy: Entropy, *, shared: bool = False) -> Core:
    """Open an installation, that other servers may have open too when it is `shared`.

    Raises:
        DataDirError, StoreError, KeyringError: It cannot be used; the text says why.
    """
    data_dir.assert_initialised()
    keyring = Keyring(data_dir.peppers)
    store = SqliteStore(data_dir.database, shared=shared)
    try:
        return build_core(store, keyring, clock, entropy)
    except BaseException:
        store.close()
        raise


def build_core(store: Store, keyring: Keyring, clock: Clock, entropy: Entropy) -> Core:
    """Put the parts together over an open store.

    Raises:
        StoreError, KeyringError: The store is empty, or a pepper is not its own.
    """
    with store.read() as reader:
        installation = reader.installation()
        keyring.verify(reader.peppers())
    audit = AuditLog(keyring.audit_key, entropy)
    mint = Mint(keyring, entropy, installation.prefix)
    usage = UsageRecorder(store)
    page_tokens = PageTokens(keyring.derived_key(b"page tokens"))
    prefixes = frozenset((installation.prefix, *installation.retired_prefixes))
    validator = Validator(store, keyring, usage, clock, entropy, prefixes)
    watches = WatchHub(store, validator, usage, clock, entropy)
    changes = Changes(store, audit, clock, on_commit=watches.wake)
    return Core(
        installation=installation,
        store=store,
        keyring=keyring,
        clock=clock,
        entropy=entropy,
        audit=audit,
        refusals=RefusalLog(store, audit, clock, installation.operator_account_id),
        changes=changes,
        mint=mint,
        usage=usage,
        validator=validator,
        watches=watches,
        page_tokens=page_tokens,
        keys=KeyManager(store, changes, mint, validator, usage, page_tokens),
        users=UserManager(store, changes, mint, page_tokens),
        accounts=AccountManager(store, changes, mint, usage, page_tokens),
    )
