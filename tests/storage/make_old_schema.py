"""Makes an installation of today's schema to keep, for tests that upgrade it later.

Run once, with the code of the version that is to be kept, before a migration is added:

    PYTHONPATH=client:service:tests python tests/storage/make_old_schema.py DIRECTORY

The directory must not exist. It gets the database, the key files, and `facts.json`: what that
version said about every account, user, key and event, and the secrets of its tokens. They open
nothing but this file: the clock stands in 2023 and the randomness is that of a seed. Secrets stand
apart from the ids of their keys, so that no file holds a token.
"""

import json
import shutil
import sys
import uuid
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from fakes import FakeClock, SeededEntropy
from harness import Service, Stubs, refused, running
from keybearer.v1 import account_service_pb2
from keybearer_service.domain import token_format
from keybearer_service.domain.clock import HOUR, MINUTE
from keybearer_service.offline.peppers import add_pepper

SEED = 1


def main(target: Path) -> None:
    """Make an installation with something of everything, and write what must be kept of it."""
    clock = FakeClock()
    entropy = SeededEntropy(SEED)
    with TemporaryDirectory() as directory:
        data = Path(directory, "data")
        with running(data, clock, entropy) as service:
            facts = fill(service, clock, entropy)
            service.app.container.usage.write()
            facts |= told(service)
            facts["time"] = clock.now()
        target.mkdir()
        shutil.copy(data / "keybearer.db", target)
        shutil.copytree(data / "peppers", target / "peppers")
    (target / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


class Filling:
    """Makes keys, and notes their secrets and what validation must say of them."""

    def __init__(self, admin: Stubs) -> None:
        self.admin = admin
        self.tokens: dict[str, dict[str, str]] = {}

    def note(self, name: str, token: str, outcome: str = "VALID") -> None:
        """Note a token."""
        prefix, key_id, rest = token.split("_")
        self.tokens[name] = {
            "prefix": prefix,
            "key_id": key_id,
            "secret": rest[:43],
            "outcome": outcome,
        }

    def key(self, name: str, outcome: str = "VALID", **fields: Any) -> tuple[str, str]:
        """Make a key; answer its id and its token."""
        made = self.admin.create_key(name=name, **fields)
        self.note(name, made.token, outcome)
        return made.api_key.id, made.token


def fill(service: Service, clock: FakeClock, entropy: SeededEntropy) -> dict[str, Any]:
    """Put something of everything into an installation; return what is not told later."""
    admin = service.admin
    made = Filling(admin)
    made.note("admin", service.admin_token)
    person = admin.create_user("person@example.com", role="ROLE_DEVELOPER", display_name="Zoë 🐻")
    machine = admin.create_user(
        "machine@example.com", role="ROLE_DEVELOPER", type="USER_TYPE_SERVICE_ACCOUNT"
    )
    leaver = admin.create_user("leaver@example.com")
    lowered = admin.create_user("lowered@example.com")

    made.key("plain")
    made.key(
        "full",
        owner_id=machine.id,
        description="What it is for: ünïcode, \\ and 'quotes'",
        scopes=["orders:read", "orders.*"],
        labels={"env": "test", "team": "bears"},
        ttl=timedelta(days=365),
    )
    made.key("expired", "EXPIRED", ttl=timedelta(minutes=5))
    disabled, _ = made.key("disabled", "DISABLED")
    admin.disable_key(disabled)
    revoked, _ = made.key("revoked", "REVOKED")
    admin.revoke(revoked, "REVOCATION_REASON_COMPROMISED", note="seen in a log")
    made.key("of-leaver", "REVOKED", owner_id=leaver.id)
    leaver_admin = service.as_token(admin.create_key(owner_id=leaver.id, role="ROLE_ADMIN").token)
    leaver_admin.create_key(name="by-leaver", owner_id=person.id)
    admin.delete_user(leaver.id)
    made.key("of-lowered", owner_id=lowered.id, role="ROLE_ADMIN")
    admin.update_user(lowered.id, {"role": "ROLE_VALIDATOR"})
    _, reported = made.key("reported", "REVOKED")
    admin.revoke_token(reported)
    updated, _ = made.key("updated", role="ROLE_ADMIN")
    admin.update_key(updated, {"name": "updated twice", "labels": {"a": "b"}})

    dead, dead_token = made.key("rotated-without-overlap", "NOT_FOUND")
    made.note("rotated-again", admin.rotate(dead).token)
    assert admin.outcome(dead_token) == "NOT_FOUND"
    rotated, old_token = made.key("old-of-rotation", owner_id=person.id)
    add_pepper(
        service.app.container.mutations,
        service.app.container.keyring,
        entropy,
        service.account_id,
    )
    made.note("new-of-rotation", admin.rotate(rotated, overlap=timedelta(hours=12)).token)
    made.key("under-second-pepper")
    for _ in range(3):
        assert admin.outcome(old_token) == "VALID"

    tenant = admin.create_account("tenant")
    made.note("tenant", tenant.token)
    tenant_admin = service.as_token(tenant.token)
    made.note("of-tenant", tenant_admin.create_key(name="of tenant").token)
    switched_off = admin.create_account("switched-off")
    made.note("switched-off", switched_off.token, "DISABLED")
    admin.accounts.DisableAccount(
        account_service_pb2.DisableAccountRequest(id=switched_off.account.id)
    )
    developer = service.as_token(admin.create_key(name="refused", owner_id=person.id).token)
    assert refused(developer.list_keys).reason == "ROLE_INSUFFICIENT"

    clock.advance(2 * HOUR)
    lost = {"name": "lost-answer", "request_id": str(uuid.UUID(int=1))}
    made.note("lost-answer", admin.create_key(**lost).token)
    used = {"name": "used-answer", "request_id": str(uuid.UUID(int=2))}
    made.note("used-answer", admin.create_key(**used).token)
    used_token = token_of(made.tokens["used-answer"])
    assert admin.outcome(used_token) == "VALID"
    clock.advance(1 * MINUTE)
    return {
        "account_id": service.account_id,
        "admin_key_id": service.admin_key_id,
        "tenant_account_id": tenant.account.id,
        "requests": {"lost": lost, "used": used},
        "tokens": made.tokens,
    }


def token_of(noted: dict[str, str]) -> str:
    """Put a token together again."""
    return token_format.write(noted["prefix"], noted["key_id"], noted["secret"])


def told(service: Service) -> dict[str, Any]:
    """Return what the service says about everything, as JSON."""
    admin = service.admin
    accounts = admin.accounts.ListAccounts(account_service_pb2.ListAccountsRequest()).accounts
    users: list[Any] = []
    keys: list[Any] = []
    events: list[Any] = []
    for account in accounts:
        users += admin.list_users(account_id=account.id, show_deleted=True).users
        keys += admin.list_keys(account_id=account.id, page_size=1000).api_keys
        events += admin.events(account_id=account.id, page_size=1000)
    with service.app.container.store.read() as reader:
        installation = reader.installation()
        seq, digest = reader.audit_head()
    return {
        "accounts": [as_json(one) for one in accounts],
        "users": [as_json(one) for one in users],
        "keys": [as_json(one) for one in keys],
        "events": [as_json(one) for one in events],
        "epoch": installation.epoch,
        "revision": installation.revision,
        "head": f"{seq}:{digest.hex()}",
    }


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON with the names of the proto."""
    return MessageToDict(message, preserving_proto_field_name=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
