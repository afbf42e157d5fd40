"""What fields may hold, at and beyond each limit."""

from collections.abc import Callable

import pytest
from google.protobuf.message import Message

from fakes import START
from keybearer.access import Role
from keybearer.v1 import api_key_pb2, api_key_service_pb2
from keybearer_service.domain import validators
from keybearer_service.domain.clock import DAY, Micros
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.model import KEY_SETTINGS

BIDI = [*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"]
CONTROLS = ["a\0b", "a\x1fb", "a\x7fb", "a\x85b", "a\nb", "a\tb", "a\u2028b", "a\u2029b"]


def refused_field(check: Callable[[], object]) -> str:
    """Make a check that must refuse; answer the field it names."""
    with pytest.raises(FieldInvalid) as caught:
        check()
    assert caught.value.description
    return caught.value.field


@pytest.mark.parametrize("value", ["a", "a" * 100, "ä" * 100, "\U0001f511" * 100, "  padded  "])
def test_names_of_one_to_a_hundred_code_points_are_taken(value: str) -> None:
    """Trimmed, and counted in code points."""
    assert validators.name("name", value) == value.strip()


@pytest.mark.parametrize("value", ["", "   ", "\n", "a" * 101, "\U0001f511" * 101])
def test_names_that_are_empty_or_too_long_are_refused(value: str) -> None:
    """What is only blanks is empty."""
    assert refused_field(lambda: validators.name("name", value)) == "name"


@pytest.mark.parametrize("value", [*CONTROLS, *(f"a{one}b" for one in BIDI)], ids=ascii)
def test_characters_that_deceive_are_refused(value: str) -> None:
    """Controls and bidi marks make a name look like another."""
    assert refused_field(lambda: validators.name("name", value)) == "name"
    assert refused_field(lambda: validators.contained("filter", value)) == "filter"


def test_a_description_may_be_empty_and_has_a_thousand_code_points() -> None:
    """One more is refused."""
    assert not validators.long_text("d", "")
    assert len(validators.long_text("d", "ä" * 1000)) == 1000
    assert refused_field(lambda: validators.long_text("d", "a" * 1001)) == "d"


MESSAGES_WITH_SETTINGS: list[type[Message]] = [
    api_key_pb2.ApiKey,
    api_key_service_pb2.CreateApiKeyRequest,
]


@pytest.mark.parametrize("message", MESSAGES_WITH_SETTINGS, ids=lambda one: str(one.__name__))
def test_every_plain_field_of_a_key_is_in_every_message(message: type[Message]) -> None:
    """What copies the plain fields goes by their names, so that no place may lack one."""
    assert set(KEY_SETTINGS) <= set(message.DESCRIPTOR.fields_by_name)


def test_every_plain_field_of_a_key_has_a_validator() -> None:
    """A field without one could be neither created nor updated."""
    assert tuple(validators.KEY_SETTINGS) == KEY_SETTINGS


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("a@b", "a@b"),
        ("First.Last+tag@Example.COM", "first.last+tag@example.com"),
        ("a" * 252 + "@b", "a" * 252 + "@b"),
    ],
)
def test_addresses_are_kept_in_lower_case(value: str, kept: str) -> None:
    """Compared in lower case, so stored in it."""
    assert validators.email("email", value) == kept


@pytest.mark.parametrize(
    "value",
    [
        "",
        "a",
        "@",
        "a@",
        "@b",
        "a@b@c",
        "a b@c",
        " a@b",
        "a@b\n",
        "a@b\0",
        "ä@b",
        "a@b\u0661",
        "a" * 253 + "@b",
    ],
)
def test_what_is_no_address_is_refused(value: str) -> None:
    """ASCII, one @, no blanks or controls, at most 254 characters."""
    assert refused_field(lambda: validators.email("email", value)) == "email"


def test_scopes_are_kept_once_in_their_order() -> None:
    """A repeated scope says nothing new."""
    assert validators.scopes("scopes", ["b", "a.*", "b"], Role.DEVELOPER) == ("b", "a.*")


def test_an_admin_key_carries_no_scopes() -> None:
    """It meets all, so to list some would mislead."""
    assert refused_field(lambda: validators.scopes("scopes", ["a"], Role.ADMIN)) == "scopes"
    assert validators.scopes("scopes", [], Role.ADMIN) == ()


def test_at_most_64_scopes_are_taken() -> None:
    """One more is refused."""
    many = [f"s{n}" for n in range(65)]
    assert len(validators.scopes("scopes", many[:64], Role.DEVELOPER)) == 64
    assert refused_field(lambda: validators.scopes("scopes", many, Role.DEVELOPER)) == "scopes"


def test_an_ill_formed_scope_is_named_by_its_place() -> None:
    """The field says which one."""
    check = lambda: validators.scopes("scopes", ["a", "B"], Role.DEVELOPER)  # noqa: E731
    assert refused_field(check) == "scopes[1]"


def test_a_required_scope_has_no_wildcard() -> None:
    """A question is about one scope each."""
    check = lambda: validators.requirement("x.", Role.ADMIN, ["a.*"])  # noqa: E731
    assert refused_field(check) == "x.required_scopes[0]"


def test_at_most_64_scopes_are_required() -> None:
    """One more is refused."""
    many = [f"s{n}" for n in range(65)]
    check = lambda: validators.requirement("", Role.UNSPECIFIED, many)  # noqa: E731
    assert refused_field(check) == "required_scopes"


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"a": ""},
        {"a" * 63: "v" * 256},
        {"0_.-z": "ü"},
        {"example.com/0": "v"},
        {f"k{n}": "v" for n in range(16)},
    ],
)
def test_labels_within_their_limits_are_taken(labels: dict[str, str]) -> None:
    """16 of 63 and 256 characters."""
    assert validators.labels("labels", labels) == labels


@pytest.mark.parametrize(
    ("labels", "field"),
    [
        ({f"k{n}": "v" for n in range(17)}, "labels"),
        ({"": "v"}, "labels"),
        ({"A": "v"}, "labels"),
        ({"_a": "v"}, "labels"),
        ({"a\n": "v"}, "labels"),
        ({"/a": "v"}, "labels"),
        ({"a/": "v"}, "labels"),
        ({"a/b/c": "v"}, "labels"),
        ({"a" * 64: "v"}, "labels"),
        ({"a": "v" * 257}, "labels[a]"),
        ({"a": "v\0"}, "labels[a]"),
        ({"a": "\u202e"}, "labels[a]"),
    ],
)
def test_labels_beyond_their_limits_are_refused(labels: dict[str, str], field: str) -> None:
    """The label at fault is named when its key can be."""
    assert refused_field(lambda: validators.labels("labels", labels)) == field


@pytest.mark.parametrize("value", [START, START - 1, 0, -1, validators.MAX_TIME + 1])
def test_a_moment_that_is_not_to_come_is_refused(value: Micros) -> None:
    """Now is too late, and the year 10000 too far."""
    assert refused_field(lambda: validators.future("t", value, START)) == "t"


@pytest.mark.parametrize("value", [START + 1, validators.MAX_TIME])
def test_a_moment_to_come_is_taken(value: Micros) -> None:
    """From the next microsecond to the end of 9999."""
    assert validators.future("t", value, START) == value


@pytest.mark.parametrize(("value", "right"), [(0, True), (30 * DAY, True), (-1, False)])
def test_an_overlap_has_up_to_30_days(value: int, *, right: bool) -> None:
    """Both ends are allowed."""
    if right:
        assert validators.overlap("overlap", value) == value
    else:
        assert refused_field(lambda: validators.overlap("overlap", value)) == "overlap"
    assert refused_field(lambda: validators.overlap("overlap", 30 * DAY + 1)) == "overlap"


UUID = "123e4567-e89b-42d3-a456-426614174000"


@pytest.mark.parametrize("value", [UUID, UUID.upper()])
def test_a_request_id_is_a_uuid_in_any_case(value: str) -> None:
    """Kept in lower case."""
    assert validators.request_id("request_id", value) == UUID


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1",
        UUID[:-1],
        UUID + "0",
        UUID + "\n",
        UUID.replace("-", ""),
        "{" + UUID + "}",
        UUID.replace("1", "\u0661"),
    ],
)
def test_a_request_id_in_another_form_is_refused(value: str) -> None:
    """Only the usual form with its dashes."""
    assert refused_field(lambda: validators.request_id("request_id", value)) == "request_id"


def test_a_role_must_be_chosen() -> None:
    """Least role by default means no role by default."""
    assert refused_field(lambda: validators.role("role", Role.UNSPECIFIED)) == "role"


def test_a_missing_id_is_told_apart_from_an_unknown_one() -> None:
    """Empty is refused here; what is merely ill-formed is for the store not to find."""
    assert refused_field(lambda: validators.required_id("id", "")) == "id"
    assert validators.required_id("id", "x" * 1000) == "x" * 1000


def test_a_filter_has_a_limit() -> None:
    """254 characters, as long as the longest text that is searched by it."""
    assert validators.contained("f", "a" * 254) == "a" * 254
    assert refused_field(lambda: validators.contained("f", "a" * 255)) == "f"
