"""Other spellings of header names and of paths, and how upstreams read them."""

import posixpath
import random
import re
from collections.abc import Callable, Iterator
from itertools import product
from urllib.parse import unquote

from gateway.support import IDENTITY

# --- header names ---------------------------------------------------------------------------------

OURS = (
    *IDENTITY,
    "x-keybearer-caller",
    "x-keybearer-required-role",
    "x-keybearer-required-scopes",
)
"""Every header that keybearer writes or reads, beside `authorization`."""
FOLDED = "!#$%&'*+.^_`|~"
"""What a header name may hold beside letters, digits and dashes: all of it folds to `_` in CGI."""
OTHER_PATHS = (
    "X-Original-URL",
    "X-Original-URI",
    "X-Rewrite-URL",
    "X-Forwarded-Uri",
    "X-Forwarded-Prefix",
    "X-Script-Name",
    "SCRIPT_NAME",
    "PATH_INFO",
)
"""Headers that some frameworks and servers take for the path, or for the part of it to cut off."""


def header_spellings() -> list[str]:
    """Return names that an upstream may read as one of ours, and each of ours in other cases."""
    names = list(OURS)
    for name in OURS:
        words = name.split("-")
        names += [name.upper(), name.title(), name.replace("keybearer", "kEYbEARER")]
        names += [character.join(words) for character in FOLDED]
        # Each dash by itself: some of them underscores, and dots.
        for joints in product("-_.", repeat=len(words) - 1):
            names.append("".join(a + b for a, b in zip(words, [*joints, ""], strict=True)))
    return list(dict.fromkeys(names))


def batches(names: list[str], size: int) -> Iterator[list[str]]:
    """Split names into batches that fit into one request of any gateway."""
    for start in range(0, len(names), size):
        yield names[start : start + size]


# --- paths ----------------------------------------------------------------------------------------

PROTECTED = ("/admin", "/clusters")
"""What the shipped files require a role and scopes for; everything in it too."""

_SPELLED = (
    # The protected path itself, and in it.
    "{0}",
    "{0}/x",
    "{0}/",
    "{0}.json",
    "{0};x=1",
    "{0};",
    "{0};/x",
    "{0}%3bx=1",
    "{0}%2fx",
    "{0}%2Fx",
    "{0}%5cx",
    "{0}\\x",
    "{0}%00",
    "{0}%00/x",
    "{0}%20",
    "{0}%09",
    "{0}%3f",
    "{0}%23",
    "{0}#x",
    "{0}/..;/x",
    "{0}/./x",
    "{0}/x/..",
    "{0}%252fx",
    # Cases.
    "{UPPER}",
    "{UPPER}/x",
    "{Mixed}/x",
    "{UPPER}%2fx",
    # Slashes.
    "/{0}",
    "//{0}",
    "//{0}/x",
    "/x/{0}",
    "%2f{bare}",
    "/%2f{bare}",
    "%5c{bare}",
    "/%5c{bare}",
    "/\\{bare}",
    "\\{bare}",
    "/x/\\..\\..{0}",
    # Dot segments.
    "/.{0}",
    "/x/..{0}",
    "/x/y/../..{0}",
    "/x/..//{bare}",
    "/%2e{0}",
    "/%2E{0}",
    "/.%2f{bare}",
    "/x/%2e%2e{0}",
    "/x/%2E%2e{0}",
    "/x/.%2e{0}",
    "/x/%2e.{0}",
    "/x%2f..{0}",
    "/x/..%2f{bare}",
    "/x/..%5c{bare}",
    "/x/..\\{bare}",
    "/x%2f%2e%2e%2f{bare}",
    "/../..{0}",
    # Parameters.
    "/;{0}",
    "/;x=1{0}",
    "/x;a=1/..{0}",
    "/x/..;{0}",
    "/x/..;a=1{0}",
    "/x/..%3b{0}",
    "/.;{0}",
    # Encoded letters.
    "/%{hex}{rest}",
    "/%{HEX}{rest}/x",
    "/%{hexupper}{rest}",
    # Twice encoded.
    "/%25{hex}{rest}",
    "/x/%252e%252e{0}",
    "/x%252f..{0}",
    "/x/%25252e%25252e{0}",
    # Other encodings of a dot and a slash.
    "/x/%c0%ae%c0%ae{0}",
    "/x/%e0%80%ae%e0%80%ae{0}",
    "/x/..%c0%af{bare}",
    "/x/%u002e%u002e{0}",
    "/x/%uff0e%uff0e{0}",
    "/%%{hex}{rest}",
    "/x/%2{0}",
    # Characters that end a path, or that some programs skip.
    "/x/..%00{0}",
    "/%00{0}",
    "/x/..%0a{0}",
    "/%0d%0a{0}",
    "/x/.%09.{0}",
    "/x#/..{0}",
    "/x?/..{0}",
    "/x%3f/..{0}",
    "/x%23/..{0}",
    # From the open path.
    "/healthz/..{0}",
    "/healthz/../{0}",
    "/healthz/%2e%2e{0}",
    "/healthz%2f..{0}",
    "/healthz%2f..%2f{bare}",
    "/healthz;/..{0}",
    "/healthz/..;{0}",
    "/healthz%00{0}",
    "/healthz#{0}",
    "/healthz%23{0}",
    "/healthz%3f{0}",
    "/healthz\\..{0}",
    "/healthz{0}",
    # With a host, and without a slash.
    "http://app{0}",
    "http://app/{0}",
    "http://app/x/..{0}",
    "http://app/x/%2e%2e{0}",
    "http://app/healthz/..{0}",
    "HTTP://APP{UPPER}",
    "http://app?{0}",
    "http:{0}",
    "http:{bare}",
    "{bare}",
    "*{0}",
    "*",
    "x{0}",
    "x:{0}",
)
_OPEN = (
    "/healthz",
    "/healthz?x=1",
    "/HEALTHZ",
    "/healthz/",
    "/healthz/x",
    "/healthz.json",
    "/healthz;x=1",
    "/healthz%00",
    "/healthz%20",
    "/health%7a",
    "/%68ealthz",
    "//healthz",
    "/./healthz",
    "/x/../healthz",
    "/x/%2e%2e/healthz",
    "/healthz#x",
    "http://app/healthz",
)

LEGITIMATE = (
    "/",
    "/orders",
    "/orders/",
    "/orders/7?page=2",
    "/orders?next=//x/../admin%2f;a=%00%zz",
    "/orders/M%C3%BCller%20%26%20S%c3%b6hne",
    "/orders/a.b..c/...",
    "/orders/.hidden",
    "/.well-known/x",
    "/orders/~u_v-w",
    "/orders/a:b@c,d+e=f!g$h&i'(j)*k",
    "/orders/%5Bx%5D%7Cy%3F%23",
    "/adm",
    "/x/admin",
    "http://app/orders",
)
"""Paths with one reading, which need a key and nothing more: no rule may get in their way."""


def path_spellings() -> list[str]:
    """Return targets that some upstream may read as a protected path, or as the open one."""
    spelled = list(_OPEN)
    for path in PROTECTED:
        bare = path[1:]
        parts = {
            "UPPER": path.upper(),
            "Mixed": "/" + bare[:2] + bare[2:].title(),
            "bare": bare,
            "rest": bare[1:],
            "hex": f"{ord(bare[0]):02x}",
            "HEX": f"{ord(bare[0]):02X}",
            "hexupper": f"{ord(bare[0].upper()):02x}",
        }
        spelled += [form.format(path, **parts) for form in _SPELLED]
    return list(dict.fromkeys(spelled))


# --- how upstreams read a path --------------------------------------------------------------------


def _path_of(target: str) -> str:
    without_host = re.sub(r"^[a-zA-Z][a-zA-Z0-9+.-]*:(//[^/?#]*)?", "", target)
    return re.split(r"[?#]", without_host)[0]


def _decoded(path: str) -> str:
    """Decode as far as anybody would: twice encoded, %u, and overlong UTF-8."""
    for _ in range(4):
        path = re.sub(r"%u00([0-9a-fA-F]{2})", r"%\1", path)
        path = re.sub(r"(?i)%uff0e|%c0%ae|%e0%80%ae", ".", path)
        path = re.sub(r"(?i)%uff0f|%c0%af|%e0%80%af", "/", path)
        path = unquote(path, "latin-1")
    return path


def _resolved(path: str) -> str:
    return posixpath.normpath("/" + re.sub("/+", "/", path).lstrip("/"))


def _without_parameters(path: str) -> str:
    return re.sub(r";[^/]*", "", path)


def _everything(target: str) -> str:
    path = _without_parameters(_decoded(_path_of(target)).replace("\\", "/"))
    return _resolved(re.sub(r"[\x00-\x1f\x7f]", "", path).rstrip()).lower()


READINGS: dict[str, Callable[[str], str]] = {
    "as it is": _path_of,
    "decoded": lambda target: unquote(_path_of(target)),
    "decoded and resolved": lambda target: _resolved(unquote(_path_of(target))),
    "resolved and decoded": lambda target: unquote(_resolved(_path_of(target))),
    "decoded twice and resolved": lambda target: _resolved(unquote(unquote(_path_of(target)))),
    "in any case": lambda target: _path_of(target).lower(),
    "without parameters": lambda target: _resolved(_without_parameters(_path_of(target))),
    "without decoded parameters": lambda target: _resolved(
        _without_parameters(unquote(_path_of(target)))
    ),
    "with backslashes": lambda target: _resolved(unquote(_path_of(target)).replace("\\", "/")),
    "up to NUL": lambda target: _resolved(unquote(_path_of(target)).partition("\0")[0]),
    "without its format": lambda target: re.sub(r"\.\w+$", "", _path_of(target)),
    "all of it": _everything,
    "the fragment too": lambda target: _everything(target.replace("#", "/")),
}
"""From a request target to the path that a kind of upstream serves for it."""


def areas(target: str, wsgi_path: str) -> set[str]:
    """Return what upstreams may serve for a target: protected paths, "/healthz", "" for others."""
    read = {reading(target) for reading in READINGS.values()} | {wsgi_path}
    return {_area(path) for path in read}


def _area(path: str) -> str:
    for protected in PROTECTED:
        if path == protected or path.startswith(protected + "/"):
            return protected
    return path if path == "/healthz" else ""


_FRAGMENTS = (
    *("/", "/", "//", "\\", "%2f", "%5c", "%252f", "%c0%af"),
    *(".", "..", "%2e", "%2e%2e", ".%2e", "%252e", "..;", ".;x"),
    *(";", ";x=1", "%3b", "?", "%3f", "#", "%23", "%00", "%20", "%09", "%0a", "%", "%zz"),
    *("x", "healthz", "/healthz", "/x/..", "http://app", "%u002e", "~", "%7e"),
)


def random_spelling(draw: random.Random) -> str:
    """Draw a target: a protected path, some letters of it spelled otherwise, among fragments."""
    path = draw.choice(PROTECTED)
    spelled = "".join(
        draw.choice((letter,) * 12 + (letter.upper(), f"%{ord(letter):02x}")) for letter in path
    )
    before = draw.choices(_FRAGMENTS, k=draw.randrange(4))
    behind = draw.choices(_FRAGMENTS, k=draw.randrange(3))
    start = draw.choice(("/", "/", "/x", "/healthz", "", "http://app"))
    # A blank would end the target.
    return "".join([start, *before, spelled, *behind])
