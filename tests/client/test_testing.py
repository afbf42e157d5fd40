"""FakeKeybearer: what the table of surfaces does not cover."""

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from client.support import until
from keybearer import (
    AccessRule,
    CachingVerifier,
    KeybearerClient,
    Outcome,
    Presented,
    RemoteVerifier,
    Role,
    errors,
)
from keybearer.access import Context
from keybearer.testing import FakeKeybearer

CONFTEST = 'pytest_plugins = ["keybearer.testing"]\n'
TEST = """
from keybearer import Presented


def test_readers_read(fake_keybearer):
    token = fake_keybearer.issue(scopes=["clusters.read"])
    assert fake_keybearer.verifier().verify(Presented(token)).valid
    fake_keybearer.revoke(token)
    assert not fake_keybearer.verifier().verify(Presented(token)).valid
"""


def test_the_fixture_comes_with_the_plugin(tmp_path: Path) -> None:
    """The plugin provides the fixture in another test suite."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:asyncio"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout


def test_keys_change_while_the_fake_runs(fake_keybearer: FakeKeybearer) -> None:
    """Keys can be disabled, enabled, changed and forced to an outcome."""
    verifier = fake_keybearer.verifier()
    token = fake_keybearer.issue(Role.DEVELOPER)
    fake_keybearer.disable(token)
    assert verifier.verify(Presented(token)).outcome is Outcome.DISABLED
    fake_keybearer.enable(token)
    fake_keybearer.change(token, role=Role.VALIDATOR, scopes=["a"])
    identity = verifier.verify(Presented(token)).identity
    assert identity is not None
    assert (identity.effective_role, identity.granted_role) == (Role.VALIDATOR, Role.DEVELOPER)
    assert identity.scopes == ("a",)
    fake_keybearer.force(token, Outcome.EXPIRED)
    assert verifier.verify(Presented(token)).outcome is Outcome.EXPIRED
    fake_keybearer.force(token, None)
    assert verifier.verify(Presented(token)).valid


def test_the_fake_judges_roles_and_scopes_when_asked(fake_keybearer: FakeKeybearer) -> None:
    """The fake judges required roles and scopes as the service does."""
    token = fake_keybearer.issue(Role.DEVELOPER, scopes=["a.*"])
    with KeybearerClient(
        fake_keybearer.address, token=fake_keybearer.validator_token, tls=False
    ) as client:
        assert client.validate_token(token, required_scopes=["a.b"]).valid
        lacking = client.validate_token(token, required_scopes=["b"])
        assert lacking.outcome is Outcome.SCOPE_INSUFFICIENT
        too_low = client.validate_token(token, required_role=Role.ADMIN)
        assert too_low.outcome is Outcome.ROLE_INSUFFICIENT


def test_the_fake_asks_for_a_credential_itself(fake_keybearer: FakeKeybearer) -> None:
    """The fake requires the credential of a validator or an administrator."""
    developer = fake_keybearer.issue(Role.DEVELOPER)
    with (
        KeybearerClient(fake_keybearer.address, token=developer, tls=False) as client,
        pytest.raises(errors.RoleInsufficientError),
    ):
        client.validate_token(developer)


@pytest.mark.parametrize(
    ("account_id", "valid"), [("", False), ("-", True), ("Other", True), ("Else", False)]
)
def test_a_verifier_accepts_keys_of_the_accounts_it_is_restricted_to(
    account_id: str,
    valid: bool,  # noqa: FBT001
    fake_keybearer: FakeKeybearer,
) -> None:
    """A verifier accepts keys of its own account, of one other, or of any."""
    token = fake_keybearer.issue(account_id="Other")
    assert fake_keybearer.verifier(account_id=account_id).verify(Presented(token)).valid is valid


def test_a_verifier_does_not_believe_an_answer_about_another_account(
    fake_keybearer: FakeKeybearer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict about another account is NOT_FOUND, whatever the server says."""
    token = fake_keybearer.issue(account_id="Other")
    honest = fake_keybearer._judge

    def judge(token: str, account_id: str, rule: AccessRule, context: Context) -> object:
        return honest(token, "-", rule, context)

    monkeypatch.setattr(fake_keybearer, "_judge", judge)
    verdict = fake_keybearer.verifier(account_id="Mine").verify(Presented(token))
    assert verdict.outcome is Outcome.NOT_FOUND
    assert verdict.identity is None


def test_who_keeps_answers_is_told_of_every_change(fake_keybearer: FakeKeybearer) -> None:
    """A caching verifier learns of every change of the fake."""
    changes: dict[str, Callable[[str], None]] = {
        "revoke": fake_keybearer.revoke,
        "disable": fake_keybearer.disable,
        "lower": lambda token: fake_keybearer.change(token, role=Role.VALIDATOR),
        "expire": lambda _: fake_keybearer.advance(timedelta(hours=1)),
    }
    with (
        KeybearerClient(
            fake_keybearer.address, token=fake_keybearer.validator_token, tls=False
        ) as client,
        CachingVerifier(client) as verifier,
    ):
        assert verifier.wait_for_lease(10)
        for change in changes.values():
            token = fake_keybearer.issue(expires_in=timedelta(hours=1))
            known = [verifier.verify(Presented(token)) for _ in range(3)]
            assert known[0].valid
            assert known[0] == known[2]
            change(token)
            until(lambda token=token, known=known: verifier.verify(Presented(token)) != known[0])  # type: ignore[misc]
        assert verifier.stats().hits >= 2 * len(changes)
        fake_keybearer.revoke(fake_keybearer.validator_token)
        until(lambda: "CREDENTIALS_INVALID" in verifier.describe()["stream"])


def test_who_keeps_answers_feels_an_outage(fake_keybearer: FakeKeybearer) -> None:
    """During an outage or a stall, a caching verifier soon stops reusing verdicts."""
    token = fake_keybearer.issue()

    def is_answered(verifier: CachingVerifier) -> bool:
        try:
            return verifier.verify(Presented(token)).valid
        except errors.VerifierUnavailableError:
            return False

    with (
        KeybearerClient(
            fake_keybearer.address, token=fake_keybearer.validator_token, tls=False
        ) as client,
        CachingVerifier(client, timeout=0.3) as verifier,
    ):
        assert verifier.wait_for_lease(10)
        for trouble in (fake_keybearer.outage, fake_keybearer.stall):
            assert is_answered(verifier)
            with trouble():
                until(lambda: not is_answered(verifier))
            until(lambda: is_answered(verifier))


def test_what_is_no_token_is_not_sent(fake_keybearer: FakeKeybearer) -> None:
    """A text that is no token is NOT_FOUND without a call."""
    verifier: RemoteVerifier = fake_keybearer.verifier()
    for token in ("", "k" * 513, "ä", "a\nb"):
        assert verifier.verify(Presented(token)).outcome is Outcome.NOT_FOUND
    assert fake_keybearer.questions == 0
