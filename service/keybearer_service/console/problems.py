"""What a page says when something cannot be done."""

from dataclasses import dataclass

from keybearer_service.domain.errors import (
    AuthorityExceeded,
    Code,
    Internal,
    LastAdmin,
    OperatorOnly,
    OutcomeUnknown,
    QuotaExceeded,
    RoleInsufficient,
    ServiceError,
    SignInAgain,
    StoreFull,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a request was not carried out, in words."""

    status: int
    title: str
    text: str = ""
    can_read: bool = False
    """Whether the caller may read, and the store can be read."""
    asks_to_sign_in: bool = False
    asks_to_sign_in_again: bool = False
    """Whether the person is signed in, and has to prove again who they are."""


def can_read(problem: Problem | None) -> bool:
    """Return whether a page may show what it stands above: not after every problem."""
    return problem is None or problem.can_read


SIGNED_OUT = Problem(
    status=401,
    title="You are signed out.",
    text="Nothing was changed, and what you typed is still here. Sign in, then try again.",
    asks_to_sign_in=True,
)
"""The session has ended, or the signed-in user is no longer an administrator."""
STALE_FORM = Problem(
    status=403,
    title="This form is from before you signed in.",
    text="Nothing was changed, and what you typed is still here. Look at it, then send it again.",
    can_read=True,
)
SIGN_IN_AGAIN = Problem(
    status=403,
    title="Your sign-in was more than an hour ago.",
    text="This hands out a secret or authority, so sign in once more. Nothing was changed, and "
    "what you typed is still here: send it again afterwards.",
    can_read=True,
    asks_to_sign_in_again=True,
)
LAST_ADMIN = Problem(
    status=409,
    title="This is the only administrator of the account.",
    text="Nothing was changed. Make somebody else an administrator first.",
    can_read=True,
)
CROSS_SITE = Problem(
    status=403,
    title="This form was not sent from the console.",
    text="Nothing was changed.",
)
NOT_FOUND = Problem(
    status=404,
    title="There is nothing here.",
    text="The link may be wrong, or what it led to is not yours to see.",
)
NO_SUCH_METHOD = Problem(status=405, title="This page cannot be used like that.")
WRONG_HOST = Problem(
    status=421,
    title="The console has another address.",
    text="Whoever runs this server can tell you which: it is in its setting console_url.",
)

_STATUS = {
    Code.NOT_FOUND: 404,
    Code.PERMISSION_DENIED: 403,
    Code.UNAUTHENTICATED: 401,
    Code.INVALID_ARGUMENT: 400,
    Code.ALREADY_EXISTS: 409,
    Code.FAILED_PRECONDITION: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNAVAILABLE: 503,
    Code.INTERNAL: 500,
}


def sentence(text: str) -> str:
    """Return what an error says, as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


def problem_of(error: ServiceError, reference: str) -> Problem:
    """Return what a page says of an error.

    Args:
        error: What was raised.
        reference: Names the request in the log.
    """
    status = _STATUS[error.code]
    where = f"Reference: {reference}."
    if isinstance(error, OutcomeUnknown):
        text = f"Look at the list before you try again. {where}"
        return Problem(status=status, title="It is not known whether this was done.", text=text)
    if isinstance(error, StoreFull):
        title = "There is no room left on the server's disk."
        return Problem(status=507, title=title, text="Nothing was changed.", can_read=True)
    if isinstance(error, Internal):
        return Problem(status=status, title="Something went wrong on the server.", text=where)
    if isinstance(error, SignInAgain):
        return SIGN_IN_AGAIN
    if isinstance(error, QuotaExceeded | AuthorityExceeded):
        text = sentence(error.message)
        return Problem(status=status, title="This was not done.", text=text, can_read=True)
    if isinstance(error, LastAdmin):
        return LAST_ADMIN
    if status == NOT_FOUND.status or isinstance(error, OperatorOnly):
        return NOT_FOUND
    if status == SIGNED_OUT.status or isinstance(error, RoleInsufficient):
        # It was so when the request began, and is not so any more.
        return SIGNED_OUT
    if error.code is Code.UNAVAILABLE:
        title = "keybearer cannot reach its store."
        return Problem(status=status, title=title, text=f"Nothing was changed. {where}")
    text = f"{sentence(error.message)} {where}"
    return Problem(status=status, title="This was not done.", text=text)
