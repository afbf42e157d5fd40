"""Callers of two nodes: one that changes keys, and several that check them."""

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

from failover.history import Key, Seen, now
from harness import Stubs, message
from keybearer import CachingVerifier, KeybearerClient, Presented
from keybearer.errors import KeybearerError
from keybearer.v1 import api_key_service_pb2, token_service_pb2

LIVE: Final = 24
"""Keys that are not revoked yet."""
_REMEMBERED_S: Final = 8.0
"""How long a revoked key goes on being checked: longer than anybody may believe in it."""
_CHANGE_EVERY_S: Final = 0.1
_CHECK_EVERY_S: Final = 0.01
_LOOK_EVERY_S: Final = 0.05
_CALL_LIMIT_S: Final = 5.0
_CHECK_LIMIT_S: Final = 3.0
_BATCHES: Final = 20
"""Of so many direct checks one is of a batch, and one reads the key itself."""


class Keys:
    """The keys of a run. Safe for use by many threads."""

    def __init__(self) -> None:
        self.all: list[Key] = []
        self._lock = threading.Lock()
        self._live: list[Key] = []
        self._revoked: list[Key] = []

    def add(self, key: Key) -> None:
        """Add one whose creation was acknowledged."""
        with self._lock:
            self.all.append(key)
            self._live.append(key)

    def oldest(self) -> Key | None:
        """Return the one to be revoked next; None when there are too few."""
        with self._lock:
            return self._live[0] if len(self._live) > LIVE else None

    def revoked(self, key: Key) -> None:
        """Note that one is revoked."""
        with self._lock:
            self._live.remove(key)
            self._revoked.append(key)

    def checked(self) -> Sequence[Key]:
        """Return those that are of interest, the ones that were revoked last first."""
        since = now() - _REMEMBERED_S
        with self._lock:
            self._revoked = [one for one in self._revoked if (one.revoked_at or 0.0) > since]
            return [*reversed(self._revoked), *self._live]


class Callers:
    """Everybody who calls, until `stop`."""

    def __init__(self, nodes: Sequence[str], token: str) -> None:
        """Begin to call.

        Args:
            nodes: The addresses of the nodes.
            token: The credential.
        """
        self.keys = Keys()
        self.seen: list[Seen] = []
        self.acknowledged: list[float] = []
        """When changes were acknowledged."""
        self.refused: list[str] = []
        """What changes were answered with that are not made."""
        self._stopping = threading.Event()
        self._failures: list[BaseException] = []
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.insecure_channel(node, options=options) for node in nodes]
        self.stubs = [Stubs(channel, token) for channel in self._channels]
        self._clients = [KeybearerClient(node, token=token, tls=False) for node in nodes]
        self.verifiers = [CachingVerifier(one, timeout=_CHECK_LIMIT_S) for one in self._clients]
        runs: list[Callable[[], None]] = [self._change]
        for number, (stubs, verifier) in enumerate(zip(self.stubs, self.verifiers, strict=True), 1):
            runs.append(self._checking(f"node {number}", stubs))
            runs.append(self._looking(f"cache {number}", verifier))
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in runs]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Call nobody any more.

        Raises:
            BaseException: What a caller has failed with.
        """
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        for verifier in self.verifiers:
            verifier.close()
        for client in self._clients:
            client.close()
        for channel in self._channels:
            channel.close()
        if self._failures:
            raise self._failures[0]

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised by `stop`
            self._failures.append(error)

    # --- changes ----------------------------------------------------------------------------------

    def _change(self) -> None:
        """Make keys and revoke them, at either node; go to the other one when one fails."""
        number = turn = 0
        while not self._stopping.wait(_CHANGE_EVERY_S):
            turn += 1
            key = self.keys.oldest()
            is_made = self._revoke(number, key) if key and turn % 2 else self._create(number)
            if not is_made:
                number = 1 - number

    def _create(self, number: int) -> bool:
        request = message(
            api_key_service_pb2.CreateApiKeyRequest,
            name="a key",
            role="ROLE_DEVELOPER",
            never_expires=True,
        )
        answer = self._make(
            lambda: self.stubs[number].keys.CreateApiKey(request, timeout=_CALL_LIMIT_S)
        )
        if answer is None:
            return False
        self.keys.add(Key(answer.api_key.id, answer.token, now()))
        return True

    def _revoke(self, number: int, key: Key) -> bool:
        key.revoking_since = key.revoking_since or now()
        request = message(
            api_key_service_pb2.RevokeApiKeyRequest,
            id=key.key_id,
            reason="REVOCATION_REASON_LOST",
        )
        began = now()
        answer = self._make(
            lambda: self.stubs[number].keys.RevokeApiKey(request, timeout=_CALL_LIMIT_S)
        )
        if answer is None:
            # What it was refused with is an answer about a key that is known.
            self.seen.append(
                Seen(f"writer {number + 1}", key.key_id, began, now(), self.refused[-1])
            )
            return False
        key.revoked_at = now()
        self.keys.revoked(key)
        return True

    def _make(self, call: Callable[[], Any]) -> Any:
        try:
            answer = call()
        except grpc.RpcError as error:
            self.refused.append(error.code().name)
            return None
        self.acknowledged.append(now())
        return answer

    # --- checks -----------------------------------------------------------------------------------

    def _checking(self, source: str, stubs: Stubs) -> Callable[[], None]:
        """Return what asks a node about one key after the other."""
        chance = random.Random(source)

        def check() -> None:
            turn = 0
            while not self._stopping.wait(_CHECK_EVERY_S):
                turn += 1
                keys = self.keys.checked()
                if not keys:
                    continue
                # The first ones were revoked last.
                key = keys[min(chance.randrange(len(keys)), chance.randrange(len(keys)))]
                if turn % _BATCHES == 0:
                    self._check_batch(source, stubs, keys[:100])
                elif turn % _BATCHES == 1:
                    self._read_key(source, stubs, key)
                else:
                    self._check_one(source, stubs, key)

        return check

    def _check_one(self, source: str, stubs: Stubs, key: Key) -> None:
        request = token_service_pb2.ValidateTokenRequest(token=key.token)
        began = now()
        try:
            answer = _name(stubs.tokens.ValidateToken(request, timeout=_CHECK_LIMIT_S).outcome)
        except grpc.RpcError as error:
            answer = error.code().name
        self.seen.append(Seen(source, key.key_id, began, now(), answer))

    def _check_batch(self, source: str, stubs: Stubs, keys: Sequence[Key]) -> None:
        items = [token_service_pb2.ValidateTokenRequest(token=key.token) for key in keys]
        request = token_service_pb2.BatchValidateTokensRequest(requests=items)
        began = now()
        try:
            found = stubs.tokens.BatchValidateTokens(request, timeout=_CHECK_LIMIT_S).responses
            answers = [_name(one.outcome) for one in found]
        except grpc.RpcError as error:
            answers = [error.code().name] * len(keys)
        ended = now()
        for key, answer in zip(keys, answers, strict=True):
            self.seen.append(Seen(source, key.key_id, began, ended, answer))

    def _read_key(self, source: str, stubs: Stubs, key: Key) -> None:
        request = api_key_service_pb2.GetApiKeyRequest(id=key.key_id)
        began = now()
        try:
            found = stubs.keys.GetApiKey(request, timeout=_CHECK_LIMIT_S).api_key
        except grpc.RpcError as error:
            answer = error.code().name
        else:
            answer = "REVOKED" if found.HasField("revoke_time") else "VALID"
        self.seen.append(Seen(f"{source} read", key.key_id, began, now(), answer))

    def _looking(self, source: str, verifier: CachingVerifier) -> Callable[[], None]:
        """Return what asks a verifier, which keeps verdicts, about all keys again and again."""

        def look() -> None:
            while not self._stopping.wait(_LOOK_EVERY_S):
                for key in self.keys.checked():
                    began = now()
                    try:
                        answer = verifier.verify(Presented(token=key.token)).outcome.name
                    except KeybearerError as error:
                        answer = error.code.name
                    self.seen.append(Seen(source, key.key_id, began, now(), answer))
                    if answer == "UNAVAILABLE":
                        break  # the next one would wait as well

        return look


def _name(outcome: Any) -> str:
    name = token_service_pb2.ValidationOutcome.Name(outcome)
    return name.removeprefix("VALIDATION_OUTCOME_")
