"""The second half of `make bench`: the doors beside ValidateToken, batches, processes, the start.

All doors are asked in turn, several times, in one run, at one server, about the same keys; every
reply is checked.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import generator, run, seed
from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.ext_authz.v3 import ext_authz_pb2 as envoy

BATCH = 100
ROUNDS = 5

Ask = Callable[[float], generator.Report]


def _allowed(reply: bytes) -> bool:
    return envoy.CheckResponse.FromString(reply).HasField("ok_response")


def _all_valid(reply: bytes) -> bool:
    responses = pb.BatchValidateTokensResponse.FromString(reply).responses
    return len(responses) == BATCH and all(one.valid for one in responses)


def _check_request(token: str) -> bytes:
    request = envoy.CheckRequest()
    request.attributes.request.http.headers["authorization"] = f"Bearer {token}"
    return generator.message(request.SerializeToString())


def _auth_request(port: int, token: str, caller: str) -> bytes:
    return (
        f"GET /v1/auth HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        f"X-Keybearer-Caller: Bearer {caller}\r\n\r\n"
    ).encode()


def _batch_request(tokens: list[str]) -> bytes:
    requests = [pb.ValidateTokenRequest(token=token) for token in tokens]
    return generator.message(pb.BatchValidateTokensRequest(requests=requests).SerializeToString())


def _asks(
    target: run.Target, caller: str, tokens: list[str], connections: int
) -> dict[str, tuple[Ask, int]]:
    """Return how each entry point is asked, and how many tokens one question is about."""
    metadata = [("authorization", f"Bearer {caller}")]

    def grpc_door(path: str, bodies: list[bytes], check: generator.Check) -> Ask:
        return lambda seconds: generator.run(
            port=target.port,
            path=path,
            metadata=metadata,
            bodies=bodies,
            check=check,
            seconds=seconds,
            connections=connections,
            in_flight=1,
        )

    singles = [
        generator.message(pb.ValidateTokenRequest(token=token).SerializeToString())
        for token in tokens
    ]
    batches = [
        _batch_request(tokens[start : start + BATCH])
        for start in range(0, len(tokens) - BATCH + 1, BATCH)
    ]
    http = [_auth_request(target.http_port, token, caller) for token in tokens]
    return {
        "ValidateToken": (grpc_door(run.PATH, singles, run.is_valid), 1),
        "ext_authz Check": (
            grpc_door(
                "/envoy.service.auth.v3.Authorization/Check",
                [_check_request(token) for token in tokens],
                _allowed,
            ),
            1,
        ),
        "forward-auth": (
            lambda seconds: generator.run_http(
                port=target.http_port, requests=http, seconds=seconds, connections=connections
            ),
            1,
        ),
        f"batches of {BATCH}": (
            grpc_door("/keybearer.v1.TokenService/BatchValidateTokens", batches, _all_valid),
            BATCH,
        ),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument(
        "--root", type=Path, default=Path(tempfile.gettempdir()) / "keybearer-bench"
    )
    options = parser.parse_args()
    data_dir, caller, tokens = seed.installation(options.root, options.keys)

    started = time.perf_counter()
    with run.keybearer_server(data_dir, http=True) as target:
        print(f"start with {options.keys:,} keys: {time.perf_counter() - started:.2f} s")
        asks = _asks(target, caller, tokens, options.connections)
        rates: dict[str, list[float]] = {name: [] for name in asks}
        wrong = 0
        for name in list(asks) * ROUNDS:
            ask, tokens_each = asks[name]
            report = ask(options.seconds)
            wrong += report.wrong
            rates[name].append(report.rate * tokens_each)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in medians.items():
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        share = rate / medians["ValidateToken"]
        print(f"{name:16} {rate:9,.0f} tokens/s ({spread}), {share:.2f} of ValidateToken")

    both = []
    for workers in (1, 2, 1, 2):
        with run.keybearer_server(data_dir, workers=workers) as target:
            ask, _ = _asks(target, caller, tokens, 32)["ValidateToken"]
            ask(1.0)
            report = ask(options.seconds)
            wrong += report.wrong
            both.append(report.rate)
    one, two = (both[0] + both[2]) / 2, (both[1] + both[3]) / 2
    print(f"workers, 32 connections: one {one:,.0f}/s, two {two:,.0f}/s, {two / one:.2f} times")
    print(f"wrong replies: {wrong}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
