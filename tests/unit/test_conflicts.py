"""What use cases make of a row that somebody else inserted first."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from fakes import FakeClock, SeededEntropy
from harness import initialise
from keybearer._wire.enums import UserType
from keybearer.access import Role
from keybearer_service.container import build_container, open_store
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.errors import EmailTaken
from keybearer_service.installation.keyring import Keyring
from keybearer_service.storage import Foreseen, Store, Writer
from keybearer_service.usecases.users import NewUser, insert_user
from reliability.seeded_bugs import Replaced


class SeesNoUsers:
    """A store whose writers find no address, as if each were inserted a moment later."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def write(self, foreseen: Foreseen = ()) -> Iterator[Writer]:
        with self._store.write(foreseen) as tx:
            yield cast("Writer", Replaced(tx, user_by_email=lambda *_: None))


def test_an_address_that_is_taken_meanwhile_is_taken(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """The store's refusal becomes the same error as the use case's own check."""
    data_dir, created = initialise(tmp_path / "data", clock, entropy)
    store = cast("Store", SeesNoUsers(open_store(data_dir.database)))
    container = build_container(store, Keyring(data_dir.peppers), clock, entropy)
    new = NewUser(email=created.user.email, display_name="U", role=Role.ADMIN, type=UserType.PERSON)
    with pytest.raises(EmailTaken), container.mutations.begin_local() as mutation:
        insert_user(mutation, container.issuer, AccountScope(created.account.id), new)
    container.close()
