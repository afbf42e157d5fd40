"""The bearer header, as one function reads it for the client and the service."""

import pytest

from bearer_cases import BEARER_CASES, TOKEN
from keybearer._wire.bearer import authorization_of, token_in_metadata, token_of


@pytest.mark.parametrize("name", BEARER_CASES)
def test_header_values_give_the_token_of_the_table(name: str) -> None:
    """Text and bytes, as values and as metadata, are read alike."""
    case = BEARER_CASES[name]
    raw = [value.encode("latin-1") for value in case.values]
    assert token_of(case.values) == case.token
    assert token_of(raw) == case.token
    metadata = [("user-agent", "test"), *(("authorization", value) for value in case.values)]
    assert token_in_metadata(metadata) == case.token
    assert token_in_metadata([("authorization", value) for value in raw]) == case.token


def test_other_metadata_is_no_credential() -> None:
    """Only the header with exactly this name counts."""
    assert token_in_metadata([("proxy-authorization", f"Bearer {TOKEN}")]) is None


@pytest.mark.parametrize("token", [TOKEN, f"{TOKEN}\n", f" {TOKEN}\r\n"])
def test_what_is_written_is_read(token: str) -> None:
    """Whitespace around a token, as at the end of a file, is dropped."""
    assert authorization_of(token) == ("authorization", f"Bearer {TOKEN}")
    assert token_in_metadata([authorization_of(token)]) == TOKEN


@pytest.mark.parametrize("token", ["", " \n", "a b", "a\tb", "a\x00", "ä"])
def test_a_token_that_no_header_carries_is_rejected(token: str) -> None:
    """The error does not repeat the token."""
    with pytest.raises(ValueError, match="the token") as raised:
        authorization_of(token)
    assert not token.strip() or token not in str(raised.value)
