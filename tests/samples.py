"""Rows to fill a store with, for tests that need a store and no service."""

from dataclasses import dataclass, field
from typing import Any

from fakes import START
from keybearer._wire.enums import AuditAction, AuditActorType, AuditTargetType, UserType
from keybearer.access import Role
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_event import AuditRecord
from keybearer_service.domain.identity import Identity, Invitation
from keybearer_service.domain.model import Account, ApiKey, Installation, Pepper, StoredSecret, User
from keybearer_service.domain.session import Session
from keybearer_service.storage import Store

PEPPER = "pepper01"
EVERYWHERE = AccountScope.of_installation("tests look at everything")


def sample_id(text: str) -> str:
    """Make a 16 character id out of a few characters; shorter ones sort as their text does."""
    return text.ljust(16, "0")[:16]


def sample_account(name: str = "acct", /, **changes: Any) -> Account:
    """Make an account whose id is its name, padded."""
    values: dict[str, Any] = {"id": sample_id(name), "name": name, "create_time": START}
    return Account(**{**values, **changes})


def sample_user(name: str = "user", /, **changes: Any) -> User:
    """Make an ADMIN of the account `acct`."""
    values: dict[str, Any] = {
        "id": sample_id(name),
        "account_id": sample_id("acct"),
        "email": f"{name.lower()}@example.com",
        "display_name": name,
        "role": Role.ADMIN,
        "type": UserType.PERSON,
        "create_time": START,
        "update_time": START,
    }
    return User(**{**values, **changes})


def sample_key(name: str = "key", /, **changes: Any) -> ApiKey:
    """Make a DEVELOPER key of the user `user`, without an expiry."""
    values: dict[str, Any] = {
        "id": sample_id(name),
        "account_id": sample_id("acct"),
        "owner_id": sample_id("user"),
        "name": name,
        "description": "",
        "role": Role.DEVELOPER,
        "scopes": (),
        "create_time": START,
        "created_by": sample_id("user"),
        "update_time": START,
        "expire_time": None,
        "secret_create_time": START,
    }
    return ApiKey(**{**values, **changes})


def sample_secret(version: int = 1, text: str = "digest") -> StoredSecret:
    """Make a secret under the one pepper."""
    return StoredSecret(text.encode().ljust(32, b"."), PEPPER, version)


def sample_session(**changes: Any) -> Session:
    """Make a session of the one user, opened with the one key."""
    values: dict[str, Any] = {
        "id": sample_id("session"),
        "account_id": sample_id("acct"),
        "user_id": sample_id("user"),
        "key_id": sample_id("key"),
        "secret_version": 1,
        "auth_time": START,
        "create_time": START,
        "last_seen_time": START,
        "peer": "192.0.2.1",
        "user_agent": "a browser",
        "digest": b"digest".ljust(32, b"."),
    }
    return Session(**{**values, **changes})


def sample_identity(**changes: Any) -> Identity:
    """Bind a subject to the one user."""
    values: dict[str, Any] = {
        "issuer": "https://id.example.com",
        "subject": "alice",
        "account_id": sample_id("acct"),
        "user_id": sample_id("user"),
        "bind_time": START,
        "mac": b"mac".ljust(32, b"."),
    }
    return Identity(**{**values, **changes})


def sample_invitation(**changes: Any) -> Invitation:
    """Invite the one user."""
    values: dict[str, Any] = {
        "id": sample_id("invitation"),
        "account_id": sample_id("acct"),
        "user_id": sample_id("user"),
        "created_by": sample_id("user"),
        "create_time": START,
        "digest": b"digest".ljust(32, b"."),
    }
    return Invitation(**{**values, **changes})


def sample_event(seq: int, **changes: Any) -> AuditRecord:
    """Make an event; its hash is none."""
    values: dict[str, Any] = {
        "id": sample_id(f"event{seq}"),
        "seq": seq,
        "time": START + seq,
        "account_id": sample_id("acct"),
        "actor_type": int(AuditActorType.LOCAL_COMMAND),
        "actor_key_id": "",
        "actor_user_id": "",
        "actor_user_email": "",
        "action": int(AuditAction.API_KEY_CREATED),
        "target_type": int(AuditTargetType.API_KEY),
        "target_id": sample_id("key"),
        "changes": "[]",
        "request_id": "",
        "peer": "",
        "target_digest": bytes([seq % 256]) * 32,
        "personal_digest": b"",
        "hash": bytes([seq % 256]) * 32,
    }
    return AuditRecord(**{**values, **changes})


def sample_installation(**changes: Any) -> Installation:
    """Make the installation's row."""
    values: dict[str, Any] = {
        "epoch": "epoch",
        "revision": 0,
        "prefix": "kbear1",
        "retired_prefixes": (),
        "operator_account_id": sample_id("acct"),
        "create_time": START,
    }
    return Installation(**{**values, **changes})


@dataclass
class Filling:
    """What `fill` put into a store."""

    account: Account = field(default_factory=sample_account)
    user: User = field(default_factory=sample_user)
    key: ApiKey = field(default_factory=sample_key)


def fill(store: Store) -> Filling:
    """Put one account, one ADMIN user and one key into an empty store."""
    filling = Filling()
    with store.write() as tx:
        tx.put_installation(sample_installation())
        tx.insert_pepper(Pepper(id=PEPPER, check=b"check", create_time=START))
        tx.insert_account(filling.account)
        tx.insert_user(filling.user)
        tx.insert_api_key(filling.key, sample_secret())
    return filling


def add_keys(store: Store, *keys: ApiKey) -> None:
    """Insert keys in one transaction."""
    with store.write() as tx:
        for key in keys:
            tx.insert_api_key(key, sample_secret())
