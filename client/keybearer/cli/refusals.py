"""How a command fails: one line for people or one object for programs, and an exit code."""

import json
import os
import shlex
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final

import grpc

from keybearer._client.hints import Hint, hint_of
from keybearer._wire.redaction import contains_token, redact
from keybearer._wire.token_format import is_id
from keybearer.errors import KeybearerError


class ExitCode(IntEnum):
    """The exit codes of the command. They are part of its interface."""

    DONE = 0
    REFUSED = 1
    """Nothing was done: the service or the command refused, or the answer to a question was no."""
    USAGE = 2
    """The command or the service rejects an argument."""
    CREDENTIAL = 3
    """The caller's credential is missing or not accepted, or may not do this."""
    UNAVAILABLE = 4
    """The service cannot be reached, is overloaded or does not answer in time."""
    NOT_VALID = 5
    """`token validate`: the verdict is not VALID."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141


_CODES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: ExitCode.USAGE,
    grpc.StatusCode.UNAUTHENTICATED: ExitCode.CREDENTIAL,
    grpc.StatusCode.PERMISSION_DENIED: ExitCode.CREDENTIAL,
    grpc.StatusCode.UNAVAILABLE: ExitCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: ExitCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExitCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED: ExitCode.UNAVAILABLE,
}

# Reasons under a code that says to try again later, where waiting does not help.
_REASONS: Final = {"QUOTA_EXCEEDED": ExitCode.REFUSED}

# The beginning of grpc's message when there was no connection, so that nothing was sent.
_NEVER_SENT: Final = ("failed to connect", "errors resolving", "DNS resolution failed")

_HINTS: Final[Mapping[Hint | None, str]] = {
    Hint.PLAINTEXT_PORT: "; this port speaks plaintext: add --plaintext if the way is safe",
    Hint.UNTRUSTED: "; the certificate is not trusted: add --ca FILE",
    Hint.OTHER_NAME: "; the certificate has another name: add --server-name NAME",
    Hint.NOT_GRPC: "; this is no gRPC port: is it the HTTP port?",
    Hint.TLS_PORT: "; this port may speak TLS: write https://, or add --client-cert",
    Hint.NO_SUCH_NAME: "; the address is wrong, or its name is not known here",
}


class Refusal(Exception):
    """Ends the command. No field contains a secret.

    Args:
        message: One sentence that says what would be right.
        exit_code: The exit code of the process.
        code: The status of the call that failed; by default the name of the exit code.
        reason: The reason of the service; empty when it gave none.
        details: Further fields of the error object.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: ExitCode = ExitCode.REFUSED,
        code: str = "",
        reason: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.code = code or exit_code.name
        self.reason = reason
        self.details = details or {}
        self.as_json: bool | None = None
        """Whether a program reads the error; None when that is not known yet."""

    def line(self) -> str:
        """Return the line for people."""
        reason = f"{self.reason}: " if self.reason else ""
        return redact(f"keybearer: {reason}{_one_line(self.message)}")

    def document(self) -> str:
        """Return the object for programs, on one line."""
        error = {
            "code": self.code,
            "reason": self.reason,
            "message": _one_line(self.message),
            "field_violations": [],
            "metadata": {},
            "retry_after": None,
            **self.details,
            "exit_code": int(self.exit_code),
        }
        return redact(json.dumps({"error": error}))


def usage(message: str) -> Refusal:
    """Return the refusal of an argument."""
    return Refusal(message, exit_code=ExitCode.USAGE)


def of_call(error: KeybearerError, where: str, credential: str, *, changing: bool) -> Refusal:
    """Return the refusal that a failed call means.

    Args:
        error: What the client raised.
        where: The address that was called, and how.
        credential: Where the credential came from; empty when none was used.
        changing: Whether the call makes a change.
    """
    lost = _is_lost(error)
    message = error.message or error.code.name
    if not error.reason:
        message = f"{error.code.name}: {where}: {message}"
    for violation in error.field_violations:
        if f"{violation.field}: " not in message:
            message += f" ({violation.field}: {violation.description})"
    message += _HINTS.get(hint_of(error), "")
    if error.code is grpc.StatusCode.UNAUTHENTICATED and credential:
        message += f" (it came from {credential})"
    if error.retry_after:
        message += f"; try again in {error.retry_after:g} s"
    details: dict[str, Any] = {
        "field_violations": [
            {"field": violation.field, "description": violation.description}
            for violation in error.field_violations
        ],
        "metadata": dict(error.metadata),
        "retry_after": error.retry_after,
    }
    if changing and lost:
        message += "; the change may have happened all the same"
        if error.request_id:
            attempt = error.attempt + 1
            message += f": continue with --request-id {error.request_id} --attempt {attempt}"
            details |= {"request_id": error.request_id, "attempt": error.attempt}
        else:
            message += ": check before you repeat it"
    message += _hint_about_id(error)
    if error.metadata.get("api_key_id") and error.code is grpc.StatusCode.ALREADY_EXISTS:
        message += f" (key {error.metadata['api_key_id']})"
    exit_code = _REASONS.get(error.reason, _CODES.get(error.code))
    if exit_code is None:
        exit_code = ExitCode.UNAVAILABLE if lost else ExitCode.REFUSED
    return Refusal(
        message, exit_code=exit_code, code=error.code.name, reason=error.reason, details=details
    )


def _hint_about_id(error: KeybearerError) -> str:
    """Return how to find the id when something else was given for it."""
    given = error.metadata.get("id", "")
    if error.reason != "RESOURCE_NOT_FOUND" or not given or is_id(given):
        return ""
    hint = _LISTS.get(error.metadata.get("resource", ""), "")
    return hint and f"; {given!r} is no id, `{hint} {shlex.quote(given)}` finds it"


_LISTS: Final = {
    "API key": "keybearer keys list --name",
    "user": "keybearer users list --email",
    "account": "keybearer accounts list --name",
}


def _is_lost(error: KeybearerError) -> bool:
    """Return whether the response was lost, so that nobody here knows what happened."""
    if error.reason:
        return error.reason == "OUTCOME_UNKNOWN"
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return not error.message.startswith(_NEVER_SENT)
    return error.code in {
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }


def assert_no_token(arguments: list[str]) -> None:
    """Reject arguments that contain a token.

    Raises:
        Refusal: An argument looks like a token. The message does not repeat it.
    """
    if any(map(contains_token, arguments)):
        raise usage(
            "an argument looks like a token, and other users can read arguments, which also stay "
            "in the shell's history: give your own token in KEYBEARER_TOKEN or --credential-file, "
            "one to validate or revoke on standard input or in --token-file; and rotate this one"
        )


def assert_utf8(arguments: list[str]) -> None:
    """Reject arguments that are not UTF-8, in whatever encoding the process reads them.

    Raises:
        Refusal: One is not. The message shows its other bytes as escapes.
    """
    for position, argument in enumerate(arguments, 1):
        try:
            os.fsencode(argument).decode()
        except UnicodeDecodeError:
            shown = os.fsencode(argument).decode(errors="backslashreplace")
            raise usage(f"argument {position} is not UTF-8: {shown}") from None


def as_utf8(text: str) -> str:
    """Return an argument or a variable as text; in the C locale Python reads them as ASCII."""
    return os.fsencode(text).decode(errors="backslashreplace")


def _one_line(text: str) -> str:
    return " ".join(text.split())
