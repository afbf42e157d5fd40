"""The token: its form, its checksum, and everything that is almost one."""

import string
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import SeededEntropy
from keybearer._wire.token_format import BASE62
from keybearer_service.domain import token_format

PREFIXES = frozenset({"kbear1", "old0"})
KEY_ID = "0123456789ABCDEF"
SECRET = "a" * 43
TOKEN = token_format.write("kbear1", KEY_ID, SECRET)


def parses(text: str) -> bool:
    """Tell whether the text is taken for a token."""
    return token_format.parse(text, PREFIXES) is not None


def test_a_token_has_the_form_of_the_contract() -> None:
    """Prefix, id and secret with its checksum: 73 characters in all with the default prefix."""
    assert len(TOKEN) == 73
    assert TOKEN[:24] == "kbear1_0123456789ABCDEF_"
    assert TOKEN[24:67] == SECRET


def test_a_written_token_parses_to_its_parts() -> None:
    """Id and secret come back."""
    assert token_format.parse(TOKEN, PREFIXES) == token_format.Parsed(KEY_ID, SECRET)


@pytest.mark.parametrize(
    ("text", "digits"),
    # CRC-32 of "123456789" is 0xCBF43926, the check value of its definition.
    [("123456789", "3jZRME"), ("", "000000"), ("a", "4GEHKN"), (TOKEN[:-6], "3GRuZL")],
)
def test_the_checksum_is_the_crc_in_base62(text: str, digits: str) -> None:
    """Fixed values, so that scanners outside can rely on it."""
    assert token_format.checksum(text) == digits


@given(st.text(alphabet=string.printable))
def test_the_checksum_agrees_with_long_division(text: str) -> None:
    """Six digits, most significant first, of the alphabet in its order."""
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = BASE62[digit] + digits
    assert number == 0
    assert token_format.checksum(text) == digits


def test_a_changed_character_is_refused_wherever_it_stands() -> None:
    """Every single substitution from the alphabet is caught without a look at the store."""
    for place, original in enumerate(TOKEN):
        for other in BASE62 + "_-":
            if other != original:
                assert not parses(TOKEN[:place] + other + TOKEN[place + 1 :]), (place, other)


def test_swapped_neighbours_are_refused() -> None:
    """Two exchanged characters are caught unless they are equal."""
    token = token_format.write("kbear1", KEY_ID, SeededEntropy(7).base62(43))
    for place in range(len(token) - 1):
        swapped = token[:place] + token[place + 1] + token[place] + token[place + 2 :]
        assert swapped == token or not parses(swapped), place


ALMOST = {
    "empty": "",
    "trailing newline": TOKEN + "\n",
    "trailing carriage return": TOKEN + "\r",
    "leading blank": " " + TOKEN,
    "trailing blank": TOKEN + " ",
    "trailing null": TOKEN + "\0",
    "with its scheme": "Bearer " + TOKEN,
    "quoted": f'"{TOKEN}"',
    "twice": TOKEN + TOKEN,
    "without its first character": TOKEN[1:],
    "without its last character": TOKEN[:-1],
    "upper case": TOKEN.upper(),
    "other prefix": token_format.write("other9", KEY_ID, SECRET),
    "prefix too short": token_format.write("k", KEY_ID, SECRET),
    "prefix too long": token_format.write("k" * 17, KEY_ID, SECRET),
    "prefix begins with a digit": token_format.write("1kbear", KEY_ID, SECRET),
    "id too short": token_format.write("kbear1", KEY_ID[:-1], SECRET),
    "id too long": token_format.write("kbear1", KEY_ID + "0", SECRET),
    "id with a sign": token_format.write("kbear1", KEY_ID[:-1] + "-", SECRET),
    "secret too short": token_format.write("kbear1", KEY_ID, SECRET[:-1]),
    "secret too long": token_format.write("kbear1", KEY_ID, SECRET + "a"),
    "one more separator": TOKEN.replace("_", "__", 1),
    "dashes": TOKEN.replace("_", "-"),
    "arabic digits": TOKEN.replace("1", "\u0661"),
    "fullwidth digits": TOKEN.replace("1", "\uff11"),
    "fullwidth letters": TOKEN.replace("a", "\uff41"),
    "long s": TOKEN.replace("a", "\u017f", 1),
    "kelvin sign": TOKEN.replace("k", "\u212a", 1),
    "combining accent": TOKEN + "\u0301",
    "lone surrogate": TOKEN[:-1] + "\ud800",
    "zero width blank": TOKEN[:10] + "\u200b" + TOKEN[10:],
}


@pytest.mark.parametrize("name", sorted(ALMOST))
def test_what_is_almost_a_token_is_none(name: str) -> None:
    """Nothing is trimmed, folded or normalised."""
    assert not parses(ALMOST[name])


@pytest.mark.parametrize("length", [511, 512, 513, 100_000])
def test_long_texts_are_refused(length: int) -> None:
    """However long it is, it is refused, and quickly."""
    assert not parses((TOKEN * (length // len(TOKEN) + 1))[:length])


def test_retired_prefixes_stay_valid() -> None:
    """A token that was issued under an older prefix goes on parsing."""
    assert parses(token_format.write("old0", KEY_ID, SECRET))
    assert token_format.parse(TOKEN, frozenset({"old0"})) is None


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("ab", True),
        ("kbear1", True),
        ("a" + "9" * 15, True),
        ("a", False),
        ("a" * 17, False),
        ("Ab", False),
        ("1a", False),
        ("a_b", False),
        ("ab\n", False),
        ("a\u0661", False),
        ("", False),
    ],
)
def test_a_prefix_has_two_to_sixteen_characters(text: str, *, right: bool) -> None:
    """Lower case letters and digits, a letter first."""
    assert token_format.is_prefix(text) == right


@pytest.mark.parametrize(
    ("text", "right"),
    [(KEY_ID, True), (KEY_ID[:-1], False), (KEY_ID + "\n", False), ("\u0661" * 16, False)],
)
def test_an_id_has_sixteen_characters(text: str, *, right: bool) -> None:
    """Base62 and nothing else."""
    assert token_format.is_id(text) == right


def test_a_secret_is_drawn_from_the_whole_alphabet() -> None:
    """43 characters, every one of base62 among them over a few draws."""
    entropy = SeededEntropy(3)
    drawn = [token_format.draw_secret(entropy) for _ in range(100)]
    assert {len(one) for one in drawn} == {43}
    assert set("".join(drawn)) == set(BASE62)
    assert len(set(drawn)) == 100


def test_the_digest_is_fixed() -> None:
    """HMAC-SHA-256 of "v1" and the length-prefixed fields: rows of every version depend on it."""
    digest = token_format.digest(b"p" * 32, "A" * 16, "K" * 16, "s" * 43)
    assert digest.hex() == "179a49583c3e1f0def8e525c54bba26caabf31def00c4ae6ae17d46e9dda0e20"


def test_the_digest_depends_on_every_part() -> None:
    """A digest copied to another row, account or pepper opens nothing."""
    parts: dict[str, Any] = {
        "pepper": b"p" * 32,
        "account_id": "A" * 16,
        "key_id": "K" * 16,
        "secret": "s" * 43,
    }
    others: dict[str, Any] = {
        "pepper": b"q" * 32,
        "account_id": "B" * 16,
        "key_id": "B" * 16,
        "secret": "B" * 43,
    }
    digests = {token_format.digest(**parts)}
    digests |= {token_format.digest(**{**parts, name: other}) for name, other in others.items()}
    assert len(digests) == 5


def test_parts_cannot_be_shifted_into_each_other() -> None:
    """The lengths are hashed, so `ab`,`c` and `a`,`bc` differ."""
    assert token_format.digest(b"p", "ab", "c", "s") != token_format.digest(b"p", "a", "bc", "s")
