"""What an `authorization` header may look like: one table for every place that reads it."""

from dataclasses import dataclass

TOKEN = "kbear1_4f9QzVbT1xKc8LmN_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA000000"


@dataclass(frozen=True)
class BearerCase:
    """The values of all `authorization` headers of one request."""

    values: tuple[str, ...]
    token: str | None
    """The token that is found; None means CREDENTIALS_MISSING."""
    survives_http: bool = True
    """False for values that an HTTP client or server changes or rejects on the way."""


BEARER_CASES = {
    "usual": BearerCase((f"Bearer {TOKEN}",), TOKEN),
    "lower case": BearerCase((f"bearer {TOKEN}",), TOKEN),
    "upper case": BearerCase((f"BEARER {TOKEN}",), TOKEN),
    "mixed case": BearerCase((f"bEARER {TOKEN}",), TOKEN),
    "two blanks": BearerCase((f"Bearer  {TOKEN}",), TOKEN),
    "five blanks": BearerCase((f"Bearer     {TOKEN}",), TOKEN),
    "every character of a b64token": BearerCase(("Bearer aZ09-._~+/==",), "aZ09-._~+/=="),
    "no header": BearerCase((), None),
    "empty": BearerCase(("",), None),
    "no scheme": BearerCase((TOKEN,), None),
    "scheme alone": BearerCase(("Bearer",), None),
    "scheme and a blank": BearerCase(("Bearer ",), None, survives_http=False),
    "no blank": BearerCase((f"Bearer{TOKEN}",), None),
    "a tab": BearerCase((f"Bearer\t{TOKEN}",), None, survives_http=False),
    "another scheme": BearerCase((f"Basic {TOKEN}",), None),
    "a longer scheme": BearerCase((f"Bearers {TOKEN}",), None),
    "two headers": BearerCase((f"Bearer {TOKEN}", f"Bearer {TOKEN}"), None),
    "another credential first": BearerCase(("Basic YTpi", f"Bearer {TOKEN}"), None),
    "two headers joined": BearerCase((f"Bearer {TOKEN}, Bearer {TOKEN}",), None),
    "two headers joined without a blank": BearerCase((f"Bearer {TOKEN},Bearer {TOKEN}",), None),
    "two tokens": BearerCase((f"Bearer {TOKEN} {TOKEN}",), None),
    "a parameter": BearerCase((f'Bearer token="{TOKEN}"',), None),
    "a blank at the end": BearerCase((f"Bearer {TOKEN} ",), None, survives_http=False),
    "a blank at the beginning": BearerCase((f" Bearer {TOKEN}",), None, survives_http=False),
    "padding in the middle": BearerCase(("Bearer a=b",), None),
    "padding alone": BearerCase(("Bearer ==",), None),
    "a quoted token": BearerCase((f'Bearer "{TOKEN}"',), None),
    "a character of no token": BearerCase((f"Bearer {TOKEN}!",), None),
    "a control character": BearerCase((f"Bearer {TOKEN}\x00",), None, survives_http=False),
    "a letter outside ASCII": BearerCase(("Bearer ä",), None, survives_http=False),
    "a digit outside ASCII": BearerCase(("Bearer ²",), None, survives_http=False),
}
