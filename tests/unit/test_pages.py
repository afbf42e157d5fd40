"""Page tokens: forged, altered, foreign."""

import string
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fakes import START
from keybearer._wire.enums import ApiKeyState
from keybearer._wire.limits import DEFAULT_PAGE_SIZE, MAX_NAME, MAX_PAGE_SIZE
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import Micros
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.token_format import ID_LENGTH
from keybearer_service.storage import Found, KeyQuery, Page, SortKey
from keybearer_service.usecases.pagination import PageTokens

PAGES = PageTokens(b"k" * 32)
BOUND = ("keys", KeyQuery(scope=AccountScope("A"), now=Micros(0)))
KEY: SortKey = (START, "id")


def token_after(key: SortKey, bound_to: object = BOUND, pages: PageTokens = PAGES) -> str:
    """Return the token of the page after an item."""
    listed = pages.listed(Found([key, (0, "more")]), Page(limit=2), bound_to, lambda item: item)
    assert list(listed.items) == [key]
    return listed.next_page_token


def refused_field(page_size: int, token: str, bound_to: object = BOUND) -> str:
    """Ask for a page that must be refused; answer the field."""
    with pytest.raises(FieldInvalid) as caught:
        PAGES.page(page_size, token, bound_to)
    return caught.value.field


@example("\U0001f511" * MAX_NAME, "0" * ID_LENGTH)  # Of all names, JSON makes most of these.
@given(
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=MAX_NAME)),
    st.text(max_size=ID_LENGTH),
)
def test_a_token_names_where_the_page_begins(value: int | str, tie: str) -> None:
    """Sort value and id come back exactly, whatever they are: a number or a name, and an id."""
    assert PAGES.page(1, token_after((value, tie)), BOUND).after == (value, tie)


def test_a_token_is_safe_in_a_url() -> None:
    """Letters, digits, `-` and `_` alone."""
    allowed = set(string.ascii_letters + string.digits + "-_")
    for n in range(200):
        assert set(token_after((n, "\u00ff" * (n % 7)))) <= allowed


def test_every_altered_character_is_refused() -> None:
    """Wherever it stands, also in the bits that base64 leaves unused."""
    for key in ((START, "id"), (START, "id1"), ("name", "id")):
        token = token_after(key)
        for place in range(len(token)):
            for other in string.ascii_letters + string.digits + "-_+/= \n\0é":
                if other != token[place]:
                    altered = token[:place] + other + token[place + 1 :]
                    assert refused_field(0, altered) == "page_token"


@pytest.mark.parametrize(
    "change", [lambda t: t + "=", lambda t: t + "A", lambda t: t[:-1], lambda t: " " + t]
)
def test_a_lengthened_or_shortened_token_is_refused(change: object) -> None:
    """It is the one text that was given out, or none."""
    assert callable(change)
    assert refused_field(0, change(token_after(KEY))) == "page_token"


@given(st.text(max_size=200).filter(bool))
def test_a_made_up_token_is_refused(token: str) -> None:
    """Any text at all."""
    assert refused_field(0, token) == "page_token"


def test_a_token_too_long_is_refused() -> None:
    """It is not even decoded."""
    assert refused_field(0, "A" * 1_000_000) == "page_token"


def test_a_token_of_another_installation_is_refused() -> None:
    """The key of the MAC is the installation's own."""
    foreign = token_after(KEY, pages=PageTokens(b"o" * 32))
    assert refused_field(0, foreign) == "page_token"


QUERY = KeyQuery(scope=AccountScope("A"), now=Micros(0))


@pytest.mark.parametrize(
    "other",
    [
        ("users", QUERY),
        ("keys", replace(QUERY, scope=AccountScope("B"))),
        ("keys", replace(QUERY, states=(ApiKeyState.ACTIVE,))),
        ("keys", replace(QUERY, owner_id="o")),
        ("keys", replace(QUERY, name_contains="n")),
        ("keys", replace(QUERY, expires_before=Micros(1))),
        ("keys", replace(QUERY, unused_since=Micros(1))),
        ("keys", replace(QUERY, order_by="name")),
        ("keys", replace(QUERY, descending=False)),
    ],
)
def test_a_token_is_bound_to_its_account_filter_and_order(other: object) -> None:
    """With anything changed it is of another list."""
    assert refused_field(0, token_after(KEY), other) == "page_token"


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        (0, DEFAULT_PAGE_SIZE),
        (1, 1),
        (MAX_PAGE_SIZE, MAX_PAGE_SIZE),
        (MAX_PAGE_SIZE + 1, MAX_PAGE_SIZE),
        (2**31 - 1, MAX_PAGE_SIZE),
    ],
)
def test_page_sizes_are_defaulted_and_clamped(asked: int, size: int) -> None:
    """0 means 50, more than 1000 means 1000; one more is read, to know whether there is more."""
    assert PAGES.page(asked, "", BOUND) == Page(limit=size + 1, after=None)


@pytest.mark.parametrize("asked", [-1, -(2**31)])
def test_a_negative_page_size_is_refused(asked: int) -> None:
    """It means nothing."""
    assert refused_field(asked, "") == "page_size"


def test_the_last_page_has_no_next_one() -> None:
    """A page that is exactly full is the last one too."""
    listed = PAGES.listed(Found([KEY]), Page(limit=2), BOUND, lambda item: item)
    assert (listed.items, listed.next_page_token) == ([KEY], "")


def test_a_page_that_ended_early_has_a_next_one() -> None:
    """Also one without any item: it goes on where the store stopped."""
    nothing: Found[SortKey] = Found([], rest=KEY)
    listed = PAGES.listed(nothing, Page(limit=2), BOUND, lambda item: item)
    assert PAGES.page(1, listed.next_page_token, BOUND).after == KEY


def test_a_page_can_be_cut_after_any_item() -> None:
    """The next one begins behind that item."""
    keys: list[SortKey] = [(START + n, "id") for n in range(3)]
    listed = PAGES.listed(Found(keys), Page(limit=9), BOUND, lambda item: item)
    assert [PAGES.page(1, listed.token_after(key), BOUND).after for key in keys] == keys
