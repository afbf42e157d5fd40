"""The key files: wrong, open, missing."""

from dataclasses import replace
from pathlib import Path

import pytest

from fakes import START, SeededEntropy
from keybearer_service.domain import token_format
from keybearer_service.domain.model import Pepper
from keybearer_service.installation.keyring import Keyring, KeyringError, PepperMissingError

ENTROPY = SeededEntropy(11)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory of key files with one pepper."""
    Keyring.create(tmp_path / "peppers", ENTROPY).add_pepper("first", ENTROPY)
    return tmp_path / "peppers"


def known(directory: Path, pepper_id: str = "first") -> Pepper:
    """What a database says of a pepper, made with the file as it is."""
    check = Keyring(directory.parent / directory.name).add_pepper("probe", ENTROPY)
    (directory / "probe.pepper").rename(directory / f"{pepper_id}.pepper")
    return Pepper(id=pepper_id, check=check, create_time=START)


def test_key_files_are_for_their_user_alone(directory: Path) -> None:
    """0600 in a directory of 0700."""
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_the_files_are_read_back(directory: Path) -> None:
    """A new process has the same keys."""
    first, second = Keyring(directory), Keyring(directory)
    assert first.pepper("first") == second.pepper("first")
    assert first.audit_key == second.audit_key
    assert first.derived_key(b"a") == second.derived_key(b"a")


def test_every_purpose_has_a_key_of_its_own(directory: Path) -> None:
    """Nothing derived tells the audit key."""
    keyring = Keyring(directory)
    assert len({keyring.derived_key(b"a"), keyring.derived_key(b"b"), keyring.audit_key}) == 3


def no_secret(_pepper_id: str) -> int:
    """Count no live secret under a pepper."""
    return 0


def test_the_right_pepper_is_accepted(directory: Path) -> None:
    """The check value of the database fits the file."""
    pepper = known(directory)
    Keyring(directory).verify([pepper], no_secret)


def test_a_wrong_pepper_is_refused_by_name(directory: Path) -> None:
    """A file of another installation is not taken, and the error says which file it is."""
    pepper = replace(known(directory), check=b"x" * 32)
    with pytest.raises(KeyringError, match=r"first\.pepper is not the pepper"):
        Keyring(directory).verify([pepper], no_secret)


def spoil(file: Path, how: str) -> None:
    """Make a key file one that cannot be used."""
    if how == "missing":
        file.unlink()
    elif how == "open to everybody":
        file.chmod(0o644)
    else:
        file.write_text("ab", "ascii")


SPOILT = ["missing", "open to everybody", "too short"]


@pytest.mark.parametrize("how", SPOILT)
def test_a_pepper_that_live_secrets_need_must_be_there(directory: Path, how: str) -> None:
    """The error says what is wrong with the file, and how many secrets need it."""
    peppers = [known(directory, "third"), known(directory, "second")]
    spoil(directory / "third.pepper", how)
    with pytest.raises(KeyringError, match=rf"third\.pepper is {how}.*; 7 live secrets need it"):
        Keyring(directory).verify(peppers, {"third": 7}.__getitem__)


@pytest.mark.parametrize("how", SPOILT)
def test_a_pepper_that_nothing_needs_may_be_unusable(directory: Path, how: str) -> None:
    """As long as there is another one for new secrets, the newest that can be used."""
    peppers = [known(directory, "third"), known(directory, "second")]
    spoil(directory / "third.pepper", how)
    keyring = Keyring(directory)
    keyring.verify(peppers, no_secret)
    assert keyring.first_readable(one.id for one in peppers) == "second"


@pytest.mark.parametrize("how", SPOILT)
def test_without_a_pepper_for_new_secrets_nothing_starts(directory: Path, how: str) -> None:
    """Whether live secrets need the only one or not."""
    peppers = [known(directory)]
    spoil(directory / "first.pepper", how)
    with pytest.raises(KeyringError, match=rf"first\.pepper is {how}"):
        Keyring(directory).verify(peppers, no_secret)


@pytest.mark.parametrize("how", SPOILT)
def test_the_file_of_a_retired_pepper_does_not_matter(directory: Path, how: str) -> None:
    """It may be removed after `pepper retire`, and is not looked for again."""
    retired = replace(known(directory, "old"), retire_time=START)
    peppers = [known(directory), retired]
    spoil(directory / "old.pepper", how)
    keyring = Keyring(directory)
    keyring.verify(peppers, no_secret)
    assert keyring.is_retired("old")
    with pytest.raises(PepperMissingError):
        keyring.pepper("old")


def test_a_pepper_that_is_added_later_is_found(directory: Path) -> None:
    """Another process's `pepper add` is seen by looking once more."""
    running = Keyring(directory)
    Keyring(directory).add_pepper("second", ENTROPY)
    assert len(running.pepper("second")) == 32


def test_the_prepared_mac_of_a_pepper_is_the_one_of_its_file(directory: Path) -> None:
    """Also after it was used, and after another pepper had to be looked for."""
    running = Keyring(directory)
    digests = [
        token_format.digest_by(running.mac("first"), "account", "key", "secret") for _ in "12"
    ]
    Keyring(directory).add_pepper("second", ENTROPY)
    digests.append(token_format.digest_by(running.mac("second"), "account", "key", "secret"))
    digests.append(token_format.digest_by(running.mac("first"), "account", "key", "secret"))
    first, second = (
        token_format.digest(running.pepper(name), "account", "key", "secret")
        for name in ("first", "second")
    )
    assert digests == [first, first, second, first]


def test_a_pepper_that_is_nowhere_is_an_error_and_no_verdict(directory: Path) -> None:
    """After looking again."""
    with pytest.raises(PepperMissingError, match="nowhere"):
        Keyring(directory).pepper("nowhere")


@pytest.mark.parametrize("content", ["", "ab" * 10, "zz" * 32])
def test_a_new_file_that_cannot_be_used_does_not_take_the_others_with_it(
    directory: Path, content: str
) -> None:
    """Also one that is just being written: the running process goes on with what it has."""
    running = Keyring(directory)
    (directory / "second.pepper").write_text(content, "ascii")
    (directory / "second.pepper").chmod(0o600)
    with pytest.raises(PepperMissingError, match="second"):
        running.pepper("second")
    assert running.first_readable(["second", "first"]) == "first"
    assert len(running.pepper("first")) == 32
    (directory / "second.pepper").write_text("ab" * 32, "ascii")
    assert running.first_readable(["second", "first"]) == "second"


def test_without_any_usable_pepper_the_error_names_one(directory: Path) -> None:
    """It is store trouble and never a verdict."""
    with pytest.raises(PepperMissingError, match="nowhere"):
        Keyring(directory).first_readable(["nowhere"])


def test_a_pepper_whose_file_was_removed_is_still_known(directory: Path) -> None:
    """Looking for another one does not forget it: live secrets may need it."""
    running = Keyring(directory)
    (directory / "first.pepper").unlink()
    with pytest.raises(PepperMissingError):
        running.pepper("other")
    assert len(running.pepper("first")) == 32


def read(directory: Path) -> None:
    """Read the keys that the tests of single files spoil."""
    Keyring(directory).pepper("first")


@pytest.mark.parametrize("name", ["audit.key", "first.pepper"])
@pytest.mark.parametrize("mode", [0o604, 0o602, 0o666, 0o644])
def test_a_file_that_is_open_to_everybody_is_refused(directory: Path, name: str, mode: int) -> None:
    """The error says what to run."""
    (directory / name).chmod(mode)
    with pytest.raises(KeyringError, match=rf"{name} is open to everybody; run: chmod 600"):
        read(directory)


def test_a_missing_audit_key_is_refused(directory: Path) -> None:
    """Without it the log cannot be continued."""
    (directory / "audit.key").unlink()
    with pytest.raises(KeyringError, match=r"audit\.key is missing"):
        Keyring(directory)


@pytest.mark.parametrize("content", ["", "zz", "ab" * 31, "é", "ab" * 32 + "x"])
@pytest.mark.parametrize("name", ["audit.key", "first.pepper"])
def test_a_file_that_holds_no_key_is_refused(directory: Path, name: str, content: str) -> None:
    """Too short, or not hexadecimal; the error names the file and not its content."""
    (directory / name).write_text(content, "utf-8")
    with pytest.raises(KeyringError, match=name) as caught:
        read(directory)
    assert len(content) < 3 or content not in str(caught.value)


def test_a_key_file_is_never_replaced(directory: Path) -> None:
    """Neither the audit key nor a pepper."""
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(KeyringError, match="exists already"):
        Keyring.create(directory, ENTROPY)
    with pytest.raises(KeyringError, match="exists already"):
        Keyring(directory).add_pepper("first", ENTROPY)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
