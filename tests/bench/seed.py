"""Makes an installation with very many keys, once, and keeps it for the next run."""

import json
from pathlib import Path

from fakes import SeededEntropy
from harness import initialise
from keybearer_service.domain import token_format
from keybearer_service.domain.clock import SystemClock
from keybearer_service.installation.keyring import Keyring
from keybearer_service.storage import dbapi

SAMPLE = 20_000
"""Tokens kept to ask about, spread over all keys."""
_BATCH = 50_000


def installation(root: Path, keys: int) -> tuple[Path, str, list[str]]:
    """Return a data directory with `keys` keys, a VALIDATOR's token and tokens to ask about."""
    path = root / f"keys-{keys}"
    known = path / "bench.json"
    if not known.exists():
        _make(path, keys, known)
    facts = json.loads(known.read_text())
    return path / "data", facts["caller"], facts["tokens"]


def _make(path: Path, keys: int, known: Path) -> None:
    path.mkdir(parents=True)
    entropy, clock = SeededEntropy(1), SystemClock()
    data_dir, created = initialise(path / "data", clock, entropy)
    now = clock.now()
    pepper_path = next(data_dir.peppers.glob("*.pepper"))
    pepper_id = pepper_path.name.removesuffix(".pepper")
    pepper = Keyring(data_dir.peppers).pepper(pepper_id)
    connection = dbapi.connect(str(data_dir.database), isolation_level=None)
    sample: list[str] = []
    step = max(1, keys // SAMPLE)
    for start in range(0, keys, _BATCH):
        rows = []
        for index in range(start, min(keys, start + _BATCH)):
            key_id, secret = entropy.base62(16), entropy.base62(43)
            digest = token_format.digest(pepper, created.account.id, key_id, secret)
            rows.append((key_id, f"key {index}", now + index, now, digest))
            if index % step == 0:
                sample.append(token_format.write("kbear1", key_id, secret))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO api_keys (id, name, create_time, update_time, digest, account_id,"
            " owner_id, created_by, role, scopes, secret_create_time, secret_used, pepper_id)"
            f" VALUES (?, ?, ?, ?, ?, '{created.account.id}', '{created.user.id}',"
            f" '{created.user.id}', 2, 'clusters.read clusters.write', {now}, 1, '{pepper_id}')",
            rows,
        )
        connection.execute("COMMIT")
    connection.close()
    known.touch(mode=0o600)
    known.write_text(json.dumps({"caller": created.issued.token, "tokens": sample}))
