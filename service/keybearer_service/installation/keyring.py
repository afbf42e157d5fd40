"""The secrets of the installation, in files and never in rows: peppers, and the audit key.

A copy of the database alone can neither check nor forge a token, nor hide a change of the log.
"""

import hmac
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import structlog

from keybearer_service.domain import token_format
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.key_derivation import derived_key
from keybearer_service.domain.model import Pepper
from keybearer_service.installation.ownership import OTHERS, give, give_open_file, user_name

log = structlog.get_logger(__name__)

KEY_BYTES = 32
"""256 bits, for peppers and for the audit key."""
_AUDIT_KEY = "audit.key"
_SUFFIX = ".pepper"
_WHERE_KEYS_ARE = "restore it from where the keys are kept"
_CHECK_TEXT = b"keybearer pepper check v1"


class KeyringError(Exception):
    """A file of the keyring is missing, wrong, or open to others; the text names it."""


class PepperMissingError(KeyringError):
    """A row names a pepper that cannot be read from the directory, not even after a second look."""


class Keyring:
    """The key files of one installation, in one directory. Safe for use by many threads."""

    def __init__(self, directory: Path) -> None:
        """Read the audit key and each pepper that can be used; `verify` says what is missing.

        Raises:
            KeyringError: The audit key is missing, malformed, or readable by everybody.
        """
        self.directory = directory
        self._audit_key = _read_key(directory / _AUDIT_KEY)
        self._macs: dict[str, hmac.HMAC] = {}
        self._retired: frozenset[str] = frozenset()
        self._peppers, self._problems = self._read_peppers({})

    @staticmethod
    def create(directory: Path, entropy: Entropy) -> "Keyring":
        """Make the directory with a fresh audit key; peppers are added by `add_pepper`.

        Raises:
            KeyringError: There is an audit key already.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        give(directory)
        _write_key(directory / _AUDIT_KEY, entropy.key_bytes(KEY_BYTES))
        return Keyring(directory)

    def pepper(self, pepper_id: str) -> bytes:
        """Return a pepper; look into the directory once more before giving up.

        Raises:
            PepperMissingError: There is no such file, or it cannot be used.
        """
        pepper = self._peppers.get(pepper_id)
        if pepper is None and pepper_id not in self._retired:
            self._reload()
            pepper = self._peppers.get(pepper_id)
        if pepper is None:
            raise PepperMissingError(self._problem(pepper_id))
        return pepper

    def first_readable(self, pepper_ids: Iterable[str]) -> str:
        """Return the first of some peppers that can be used, the newest one first.

        Raises:
            PepperMissingError: None of them can be used.
        """
        missing = PepperMissingError(f"there is no pepper in {self.directory.name}/")
        for pepper_id in pepper_ids:
            try:
                self.pepper(pepper_id)
            except PepperMissingError as error:
                missing = error
            else:
                return pepper_id
        raise missing

    def mac(self, pepper_id: str) -> hmac.HMAC:
        """Return the HMAC under a pepper, prepared once, to be copied.

        Raises:
            PepperMissingError: As `pepper`.
        """
        macs = self._macs
        mac = macs.get(pepper_id)
        if mac is None:
            mac = macs[pepper_id] = token_format.mac_of(self.pepper(pepper_id))
        return mac

    def add_pepper(self, pepper_id: str, entropy: Entropy, file: Path | None = None) -> bytes:
        """Draw a pepper, write its file, and return the value to check it by.

        Args:
            pepper_id: Its id.
            entropy: What it is drawn from.
            file: Where it is written; by default where this keyring reads it.

        Raises:
            KeyringError: The file cannot be written, or a server of another user could not read it.
        """
        pepper = entropy.key_bytes(KEY_BYTES)
        _write_key(file or self.directory / (pepper_id + _SUFFIX), pepper)
        if file is None:
            self._peppers = {**self._peppers, pepper_id: pepper}
        return _check_value(pepper)

    def verify(self, peppers: Sequence[Pepper], live_secrets: Callable[[str], int]) -> None:
        """Compare the key files with the check values in the database.

        A pepper that no live secret needs may be missing: another one serves for new secrets.

        Args:
            peppers: All that the database knows, newest first.
            live_secrets: Counts the secrets that need a pepper; asked about one that is missing.

        Raises:
            KeyringError: One that live secrets need is missing, one is not that which the database
                was written with, or there is none for new secrets.
        """
        self.learn(peppers)
        current = [one for one in peppers if one.retire_time is None and not one.is_announced]
        for known in current:
            pepper = self._peppers.get(known.id)
            if pepper is None:
                needed_by = live_secrets(known.id)
                if needed_by:
                    raise KeyringError(
                        f"{self._problem(known.id)}; {needed_by} live secrets need it"
                    )
                log.error("pepper_unreadable", pepper_id=known.id, cause=self._problem(known.id))
            elif not hmac.compare_digest(_check_value(pepper), known.check):
                raise KeyringError(
                    f"{self.directory.name}/{known.id}{_SUFFIX} is not the pepper this database "
                    "was written with"
                )
        self.first_readable(one.id for one in current)

    def holds(self, pepper: Pepper) -> bool:
        """Return whether the file of a pepper is there and is the right one."""
        try:
            return hmac.compare_digest(_check_value(self.pepper(pepper.id)), pepper.check)
        except PepperMissingError:
            return False

    def assert_complete(self, peppers: Sequence[Pepper]) -> None:
        """Refuse to be without a pepper that other nodes issue secrets under.

        Raises:
            KeyringError: The file of one is missing or cannot be used.
        """
        for one in peppers:
            if one.retire_time is None and not one.is_announced and not self.holds(one):
                raise KeyringError(self._problem(one.id))

    def learn(self, peppers: Sequence[Pepper]) -> None:
        """Note which peppers are retired: those are not looked for again when they are missing."""
        self._retired = frozenset(one.id for one in peppers if one.retire_time is not None)

    def is_retired(self, pepper_id: str) -> bool:
        """Return whether a pepper is retired, by what `verify` and `learn` were told."""
        return pepper_id in self._retired

    @property
    def audit_key(self) -> bytes:
        """The key of the audit chain."""
        return self._audit_key

    def derived_key(self, purpose: bytes) -> bytes:
        """Return a key for one more purpose, the same in every process of the installation."""
        return derived_key(self._audit_key, purpose)

    def _reload(self) -> None:
        # A file that cannot be used must not take the others with it: what was read stays, and the
        # error is for the calls that need just that pepper.
        found, problems = self._read_peppers(self._peppers)
        for pepper_id in problems.keys() - self._problems.keys() - self._retired:
            log.error("pepper_unreadable", pepper_id=pepper_id, cause=problems[pepper_id])
        self._peppers, self._problems = found, problems
        self._macs = {}

    def _read_peppers(
        self, known: Mapping[str, bytes]
    ) -> tuple[Mapping[str, bytes], Mapping[str, str]]:
        found, problems = dict(known), {}
        for path in self.directory.glob(f"*{_SUFFIX}"):
            pepper_id = path.name.removesuffix(_SUFFIX)
            try:
                found[pepper_id] = _read_key(path)
            except KeyringError as error:
                problems[pepper_id] = str(error)
        return found, problems

    def _problem(self, pepper_id: str) -> str:
        path = self.directory / (pepper_id + _SUFFIX)
        return self._problems.get(pepper_id, f"{path} is missing; {_WHERE_KEYS_ARE}")


def _check_value(pepper: bytes) -> bytes:
    return hmac.digest(pepper, _CHECK_TEXT, "sha256")


def _read_key(path: Path) -> bytes:
    try:
        found = path.stat()
        if found.st_mode & OTHERS:
            raise KeyringError(f"{path} is open to everybody; run: chmod 600 {path}")
        key = bytes.fromhex(path.read_text("ascii"))
    except FileNotFoundError:
        raise KeyringError(f"{path} is missing; {_WHERE_KEYS_ARE}") from None
    except PermissionError:
        raise KeyringError(_foreign(path)) from None
    except (OSError, ValueError) as error:
        raise KeyringError(f"{path} is not a key file ({type(error).__name__})") from None
    if len(key) < KEY_BYTES:
        raise KeyringError(f"{path} is too short: {KEY_BYTES} bytes in hexadecimal are needed")
    return key


def _foreign(path: Path) -> str:
    try:
        owner = user_name(path.stat().st_uid)
    except PermissionError:
        return f"this user may not look into {path.parent}; run the command as its owner"
    return (
        f"this user may not read {path}, which belongs to {owner}; run the command as that user, "
        f"or give this one the file: chown {os.geteuid()} {path}"
    )


def _write_key(path: Path, key: bytes) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        holder = os.fstat(directory)
        if os.geteuid() not in (0, holder.st_uid):
            raise KeyringError(
                f"{path.parent} belongs to {user_name(holder.st_uid)}, whose server could not read "
                "a key file of this user; run the command as that user"
            )
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path.name, flags, 0o600, dir_fd=directory), "wb") as file:
            give_open_file(file.fileno(), holder)
            file.write(key.hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.fsync(directory)
    except FileExistsError:
        raise KeyringError(f"{path} exists already") from None
    except OSError as error:
        raise KeyringError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        os.close(directory)
