"""Tokens that the command reads and writes: files, standard input, standard output."""

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from keybearer.cli import output
from keybearer.cli.refusals import Refusal, usage
from keybearer.cli.terminal import ask_secret
from keybearer.models import ApiKey

_MAX_INPUT = 4096
"""Bytes. No token is longer than 512."""


def read_token_file(path: Path, name: str) -> str:
    """Return the token in a file.

    Args:
        path: The file.
        name: The setting that names the file.

    Raises:
        Refusal: The file cannot be read, or does not hold exactly one line.
    """
    try:
        with path.open("rb") as file:
            read = file.read(_MAX_INPUT + 1)
    except OSError as error:
        raise usage(f"{name}: {path}: {error.strerror}") from None
    return _single_line(read, f"{name}: {path}")


def read_token(path: Path | None) -> str:
    """Return the token that a command is about: from a file, standard input, or a prompt.

    Raises:
        Refusal: There is no token.
    """
    if path is not None:
        return read_token_file(path, "--token-file")
    token = None
    if sys.stdin is not None and sys.stdin.isatty():
        token = ask_secret("Token: ")
    elif sys.stdin is not None:
        token = _single_line(sys.stdin.buffer.read(_MAX_INPUT + 1), "standard input")
    if token is None:
        raise usage("no token: give it on standard input or in --token-file")
    return token


def _single_line(read: bytes, where: str) -> str:
    # PowerShell writes UTF-16 with a byte order mark, some editors UTF-8 with one.
    is_utf16 = read.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        token = read.decode("utf-16" if is_utf16 else "utf-8-sig").strip()
    except UnicodeDecodeError:
        raise usage(f"{where} holds no token: it is not text in UTF-8 or UTF-16") from None
    if not token:
        raise usage(f"{where} holds no token")
    if len(read) > _MAX_INPUT or len(token.splitlines()) > 1:
        raise usage(f"{where} holds more than a token")
    if not (token.isascii() and token.isprintable()):
        raise usage(f"{where} holds no token: tokens are letters, digits and underscores")
    return token


class TokenSink:
    """Where a new token goes. It is opened before the token is created; see `token_sink`."""

    def __init__(self, path: Path | None, descriptor: int | None) -> None:
        self._path = path
        self._descriptor = descriptor
        self.filled = False

    def deliver(
        self, token: str, api_key: ApiKey, document: Mapping[str, Any], text: str, *, as_json: bool
    ) -> None:
        """Write a token.

        Args:
            token: The secret.
            api_key: The key of the token; the error names it when the token cannot be written.
            document: The result for programs, without the token.
            text: The facts for people. They go to standard error, so that standard output has the
                token alone.
            as_json: Whether a program reads the result.

        Raises:
            Refusal: The token could not be written, so it is lost.
        """
        try:
            if self._descriptor is not None:
                self._write(token)
                shown = {"token_file": str(self._path)}
            else:
                shown = {"token": token}
            if as_json:
                typer.echo(output.to_json({**document, **shown}))
            else:
                self._show(token, text)
            sys.stdout.flush()
        except OSError as error:
            if self.filled:
                raise
            raise Refusal(
                f"the token could not be written ({error.strerror}) and is lost; the key "
                f"{api_key.id} exists: `keybearer keys rotate {api_key.id}` gives it another"
            ) from None

    def _write(self, token: str) -> None:
        assert self._descriptor is not None  # noqa: S101 - its only caller checks this
        with os.fdopen(self._descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.filled = True

    def _show(self, token: str, text: str) -> None:
        output.note(text)
        if self._path is not None:
            output.note(f"\nThe token is in {self._path}.")
            return
        if sys.stdout.isatty():
            output.note(
                "\nThe token is shown only now and stored nowhere. Copy it; if it is lost, "
                "rotate the key.\n"
            )
        typer.echo(token)


@contextmanager
def token_sink(path: Path | None) -> Iterator[TokenSink]:
    """Open the place of a new token before the token is created.

    A file is created at once, empty and for this user alone (0600), so that a file that exists or
    cannot be written costs no token. It is removed again when no token follows.

    Args:
        path: The new file; None means standard output.

    Raises:
        Refusal: The file exists or cannot be created.
    """
    if path is None:
        yield TokenSink(None, None)
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise usage(f"--token-file: {path} exists already; nothing was created") from None
    except OSError as error:
        raise usage(f"--token-file: {path}: {error.strerror}; nothing was created") from None
    sink = TokenSink(path, descriptor)
    try:
        yield sink
    finally:
        if not sink.filled:
            with contextlib.suppress(OSError):
                path.unlink()
