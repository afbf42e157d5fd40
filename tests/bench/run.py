"""`make bench`: what keybearer does in a second, beside a grpcio server that does nothing.

Always a ratio within one run: pairs of runs, one right after the other and in turning order, the
generator in this process and each server in one of its own. Every reply is checked.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import generator, seed
from keybearer.v1 import token_service_pb2 as pb

PATH = "/keybearer.v1.TokenService/ValidateToken"
_WARM_UP_S = 1.0


class Target(NamedTuple):
    """A server to be measured."""

    port: int
    pid: int
    http_port: int = 0

    def cpu_seconds(self) -> float:
        """Return the processor time it has used, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Measured(NamedTuple):
    """A run, and what it cost the server."""

    report: generator.Report
    cpu_us: float
    """Processor microseconds a reply: steadier than the rate where other things run too."""


@contextmanager
def bare_server() -> Iterator[Target]:
    """Run the yardstick."""
    with _process([sys.executable, str(Path(__file__).with_name("bare.py"))]) as process:
        assert process.stdout is not None
        yield Target(int(process.stdout.readline()), process.pid)


@contextmanager
def keybearer_server(data_dir: Path, *, workers: int = 1, http: bool = False) -> Iterator[Target]:
    """Run the service as `serve` does."""
    command = [sys.executable, "-m", "keybearer_service", "serve", "--data-dir", str(data_dir)]
    command += ["--listen", "127.0.0.1:0", "--workers", str(workers)]
    if http:
        command += ["--http-listen", "127.0.0.1:0"]
    with _process(command) as process:
        assert process.stderr is not None
        ready = []
        http_port = 0
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] == "serving":
                ready.append(event["port"])
            elif event["event"] == "serving_http":
                http_port = event["port"]
            if len(ready) == workers:
                break
        else:
            raise RuntimeError("the server did not start")
        yield Target(ready[0], process.pid, http_port)


@contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def is_valid(reply: bytes) -> bool:
    """Check a reply: a VALID verdict about a named key, that may be cached."""
    verdict = pb.ValidateTokenResponse.FromString(reply)
    return verdict.valid and len(verdict.key_id) == len("0" * 16)


def measure(
    target: Target,
    caller: str,
    bodies: Sequence[bytes],
    options: argparse.Namespace,
    seconds: float,
) -> Measured:
    """Run the generator once."""
    before = target.cpu_seconds()
    report = generator.run(
        port=target.port,
        path=PATH,
        metadata=[("authorization", f"Bearer {caller}")],
        bodies=bodies,
        check=is_valid,
        seconds=seconds,
        connections=options.connections,
        in_flight=options.in_flight,
    )
    return Measured(report, (target.cpu_seconds() - before) / report.replies * 1e6)


def main() -> int:
    """Run the pairs and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument(
        "--root", type=Path, default=Path(tempfile.gettempdir()) / "keybearer-bench"
    )
    parser.add_argument("--at-least", type=float, default=0.0, help="fail below this ratio")
    options = parser.parse_args()

    started = time.perf_counter()
    data_dir, caller, tokens = seed.installation(options.root, options.keys)
    print(f"{options.keys:,} keys ready after {time.perf_counter() - started:.1f} s")
    bodies = [
        generator.message(pb.ValidateTokenRequest(token=token).SerializeToString())
        for token in tokens
    ]
    ratios: list[float] = []
    replies = 0
    with bare_server() as bare_target, keybearer_server(data_dir) as our_target:
        for target in (bare_target, our_target):
            measure(target, caller, bodies, options, _WARM_UP_S)
        for pair in range(options.pairs):
            order = (bare_target, our_target) if pair % 2 == 0 else (our_target, bare_target)
            runs = {one: measure(one, caller, bodies, options, options.seconds) for one in order}
            (bare, bare_cpu), (ours, our_cpu) = runs[bare_target], runs[our_target]
            if bare.wrong or ours.wrong:
                print(f"wrong replies: {bare.wrong} bare, {ours.wrong} ours")
                return 1
            ratios.append(ours.rate / bare.rate)
            replies += ours.replies
            print(
                f"pair {pair + 1}: bare {bare.rate:7.0f}/s p99 {bare.percentile(0.99):6.2f} ms "
                f"{bare_cpu:4.0f} us/call | ValidateToken {ours.rate:7.0f}/s "
                f"p50 {ours.percentile(0.5):5.2f} p99 {ours.percentile(0.99):6.2f} ms "
                f"{our_cpu:4.0f} us/call | ratio {ratios[-1]:.3f}, by processor time "
                f"{bare_cpu / our_cpu:.3f}"
            )
    ratio = statistics.median(ratios)
    print(
        f"ValidateToken at {options.keys:,} keys: ratio {ratio:.3f} (median of {len(ratios)} "
        f"pairs, {min(ratios):.3f} to {max(ratios):.3f}), {replies:,} replies, all checked"
    )
    return int(ratio < options.at_least)


if __name__ == "__main__":
    sys.exit(main())
