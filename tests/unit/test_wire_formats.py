"""Token format, redaction, peers and enums: what the client and the service share."""

import enum
from typing import Any

import pytest

from keybearer._wire import enums
from keybearer._wire.enums import members_of
from keybearer._wire.peer import host_of
from keybearer._wire.redaction import contains_token, redact
from keybearer._wire.token_format import (
    BASE62,
    checksum,
    is_id,
    is_prefix,
    may_be_token,
    parse_token,
    write_token,
)
from keybearer.v1 import api_key_pb2, audit_event_pb2, token_service_pb2, user_pb2

ID = "4f9QzVbT1xKc8LmN"
SECRET = "A" * 43
TOKEN = write_token("kbear1", ID, SECRET)
PREFIXES = frozenset({"kbear1", "old2"})


def test_a_token_that_is_written_is_parsed() -> None:
    """Id and secret are found again, under the current prefix and a retired one."""
    for prefix in PREFIXES:
        parsed = parse_token(write_token(prefix, ID, SECRET), PREFIXES)
        assert parsed is not None
        assert (parsed.key_id, parsed.secret) == (ID, SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "",
        TOKEN[:-1],
        TOKEN + "0",
        f" {TOKEN}",
        f"{TOKEN}\n",
        TOKEN.swapcase(),
        TOKEN.replace("kbear1", "other1"),
        TOKEN[:-1] + ("1" if TOKEN[-1] == "0" else "0"),
        TOKEN.replace("A", "²", 1),
        "k" * 513,
    ],
)
def test_a_text_that_is_no_token_is_not_parsed(text: str) -> None:
    """A wrong length, alphabet, prefix or checksum is rejected."""
    assert parse_token(text, PREFIXES) is None


@pytest.mark.parametrize(("text", "digits"), [("", "000000"), ("123456789", "3jZRME")])
def test_the_checksum_is_crc_32_in_base62(text: str, digits: str) -> None:
    """Zero-padded to six digits, the most significant first."""
    assert checksum(text) == digits
    value = 0
    for digit in digits:
        value = value * 62 + BASE62.index(digit)
    assert value == {"": 0, "123456789": 0xCBF43926}[text]


@pytest.mark.parametrize(("text", "right"), [(ID, True), (ID[:-1], False), (f"{ID}\n", False)])
def test_an_id_has_16_base62_characters(text: str, *, right: bool) -> None:
    """Nothing shorter, longer or with other characters."""
    assert is_id(text) is right


@pytest.mark.parametrize(
    ("text", "right"), [("kbear1", True), ("ab", True), ("a", False), ("1ab", False), ("aB", False)]
)
def test_a_prefix_begins_with_a_letter(text: str, *, right: bool) -> None:
    """2 to 16 lower-case letters and digits."""
    assert is_prefix(text) is right


@pytest.mark.parametrize(
    ("text", "may"),
    [
        (TOKEN, True),
        ("another.form~of+token", True),
        ("k" * 512, True),
        ("", False),
        ("k" * 513, False),
        ("a b", False),
        ("a,b", False),
        ("a\n", False),
        ("ä", False),
    ],
)
def test_only_what_is_certainly_no_token_is_not_asked_about(text: str, *, may: bool) -> None:
    """The service may issue tokens of another form one day."""
    assert may_be_token(text) is may


REDACTED = {
    TOKEN: f"kbear1_{ID}_[redacted]",
    f"before {TOKEN} after": f"before kbear1_{ID}_[redacted] after",
    f'"{TOKEN}"': f'"kbear1_{ID}_[redacted]"',
    f"kbear1_{ID}_" + "A" * 10: f"kbear1_{ID}_[redacted]",
    f"kbear1_{ID}_" + "A" * 9: f"kbear1_{ID}_" + "A" * 9,
    f"{TOKEN},{TOKEN}": f"kbear1_{ID}_[redacted],kbear1_{ID}_[redacted]",
    f"kbear1_{ID}": f"kbear1_{ID}",
    "a name_with_underscores": "a name_with_underscores",
}


@pytest.mark.parametrize("text", REDACTED)
def test_the_secret_is_cut_out_of_a_text(text: str) -> None:
    """Also of a token that was cut short; the public id stays."""
    assert redact(text) == REDACTED[text]
    assert contains_token(text) is (redact(text) != text)


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.1:1234", "192.0.2.1"),
        ("ipv6:[2001:db8::1]:1234", "2001:db8::1"),
        ("ipv6:%5B2001:db8::1%5D:1234", "2001:db8::1"),
        ("unix:", "unix"),
        ("unix:/run/keybearer.sock", "unix"),
        ("", ""),
    ],
)
def test_a_peer_is_reduced_to_its_address(peer: str, host: str) -> None:
    """The port changes with every connection and says nothing."""
    assert host_of(peer) == host


ENUMS: list[tuple[type[enum.IntEnum], Any, str]] = [
    (enums.UserType, user_pb2.UserType, "USER_TYPE"),
    (enums.ApiKeyState, api_key_pb2.ApiKeyState, "API_KEY_STATE"),
    (enums.RevocationReason, api_key_pb2.RevocationReason, "REVOCATION_REASON"),
    (enums.Outcome, token_service_pb2.ValidationOutcome, "VALIDATION_OUTCOME"),
    (enums.AuditAction, audit_event_pb2.AuditAction, "AUDIT_ACTION"),
    (enums.AuditActorType, audit_event_pb2.AuditActorType, "AUDIT_ACTOR_TYPE"),
    (enums.AuditTargetType, audit_event_pb2.AuditTargetType, "AUDIT_TARGET_TYPE"),
]


@pytest.mark.parametrize(("mine", "proto", "prefix"), ENUMS, ids=[one[2] for one in ENUMS])
def test_an_enum_has_the_names_and_numbers_of_its_proto(
    mine: type[enum.IntEnum], proto: Any, prefix: str
) -> None:
    """A value that is added to a proto is added here too."""
    expected = {name.removeprefix(f"{prefix}_"): number for name, number in proto.items()}
    assert {member.name: member.value for member in mine} == expected
    assert members_of(mine) == tuple(member for member in mine if member.name != "UNSPECIFIED")
