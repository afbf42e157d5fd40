"""The file of a Unix socket: never taken from a server that lives, never left behind."""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from keybearer_service.net.addresses import Address, ListenError

CONNECT_TIMEOUT_S = 1.0


class UnixSocketFile:
    """The place of a server's socket in the file system.

    The server binds a private name, and the socket gets its public name together with its mode: so
    nobody connects who may not, and a server that ends removes no socket but its own.
    """

    def __init__(self, address: Address, mode: int) -> None:
        """Look whether the place can be taken.

        Args:
            address: The public address.
            mode: The permissions of the file; who may write it may connect.

        Raises:
            ListenError: A server listens there, what is there is no socket, or the directory takes
                no socket.
        """
        self._path = Path(address.path)
        self._mode = mode
        self._private = self._path.with_name(f".{os.getpid()}")
        self._refuse_if_taken()
        self._assert_bindable()
        self._made: os.stat_result | None = None
        self.address = Address(path=str(self._private))
        """The address to bind."""

    def publish(self) -> None:
        """Give the bound socket its mode and its public name; a stale one there is replaced.

        Raises:
            ListenError: The name cannot be given, or was taken meanwhile.
        """
        self._refuse_if_taken()
        try:
            self._private.chmod(self._mode)
            self._made = self._private.stat()
            self._private.rename(self._path)
        except OSError as error:
            raise ListenError(f"cannot listen on unix:{self._path}: {error.strerror}") from None

    def remove(self) -> None:
        """Remove the socket, unless another server's has its name by now."""
        with suppress(OSError):
            self._private.unlink(missing_ok=True)
            if self._made is not None and os.path.samestat(self._path.lstat(), self._made):
                self._path.unlink()

    def _assert_bindable(self) -> None:
        # Before grpc finds out, which logs it in its own way and does not tell why.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.bind(str(self._private))
            self._private.unlink()
        except OSError as error:
            raise ListenError(f"cannot listen on unix:{self._path}: {error.strerror}") from None

    def _refuse_if_taken(self) -> None:
        refusal = f"cannot listen on unix:{self._path}: "
        try:
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise ListenError(f"{refusal}a file that is no socket is there")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(CONNECT_TIMEOUT_S)
                probe.connect(str(self._path))
        except (FileNotFoundError, ConnectionRefusedError):
            return  # free, or left behind by a server that was killed
        except (TimeoutError, BlockingIOError):
            pass  # a server that is too busy to accept
        except OSError as error:
            raise ListenError(f"{refusal}{error.strerror}") from None
        raise ListenError(f"{refusal}another server listens there; stop that one first")
