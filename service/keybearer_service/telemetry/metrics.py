"""Prometheus metrics of the service.

Labels are bounded: entry points, outcomes, reasons, own methods, status codes, spans of days. Never
a key, an account, a peer, or anything that a caller can choose.

What happens on every validation is only noted, which takes a fraction of a microsecond; once a
second, and before every scrape, the notes are folded into the metrics. With several processes each
writes its metrics into files of one directory (PROMETHEUS_MULTIPROC_DIR, as prometheus_client has
it), and whichever process is scraped answers for all.
"""

import os
import threading
from bisect import bisect_left
from collections import Counter as Tally
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Literal

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, multiprocess
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from keybearer._wire.enums import Outcome
from keybearer_service.telemetry.log_quotas import OutageLog
from keybearer_service.telemetry.recorder import EntryPoint

log = structlog.get_logger(__name__)

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where several processes keep their metrics; read by prometheus_client when it is imported."""
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
FOLD_INTERVAL_S = 1.0
MAX_NOTES = 1_000_000
"""Verdicts noted and not yet folded; beyond, the oldest are lost rather than memory filled."""
LATENCY_BOUNDS = (
    0.00001,
    0.000025,
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.05,
    0.25,
    1.0,
    5.0,
)
"""Seconds. A verdict takes some 20 us; a store that is locked, seconds."""
_BOUNDS = (*map(str, LATENCY_BOUNDS), "+Inf")
_LATENCY_COUNTS = "keybearer_latency_counts"
_LATENCY_SUMS = "keybearer_latency_sums"
"""Counters that are shown as one histogram."""

_GAUGES: tuple[tuple[str, str, Literal["livesum", "livemax", "livemostrecent"]], ...] = (
    ("watch_streams", "Open watch streams.", "livesum"),
    ("watch_lag_revisions", "Revisions that watch streams were not told yet.", "livemax"),
    ("store_bytes", "Size of the database and its log.", "livemostrecent"),
    ("store_revision", "The newest revision.", "livemostrecent"),
    (
        "clock_offset_seconds",
        "How far the clock of the database is ahead of this machine's.",
        "livemostrecent",
    ),
    ("queued_calls", "Validations that wait for a thread.", "livesum"),
    ("queued_uses", "Secrets with uses that are not written yet.", "livesum"),
    ("log_lines_dropped", "Log lines lost because nobody read them, since the start.", "livesum"),
)
"""Name, meaning, and how the values of several processes become one."""

Probe = Callable[[], Mapping[str, float]]
"""Returns the values of gauges at the moment, by their names without `keybearer_`."""


class _WithLatency(Collector):
    """Collects what a registry holds, with the counters of latencies as one histogram.

    The library's histogram takes one observation at a time, which is too slow for every verdict.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        counts: dict[str, dict[str, float]] = {}
        sums: dict[str, float] = {}
        for metric in self._registry.collect():
            if metric.name not in (_LATENCY_COUNTS, _LATENCY_SUMS):
                yield metric
            for sample in metric.samples:
                if sample.name == f"{_LATENCY_COUNTS}_total":
                    of_bound = counts.setdefault(sample.labels["entry_point"], {})
                    of_bound[sample.labels["le"]] = sample.value
                elif sample.name == f"{_LATENCY_SUMS}_total":
                    sums[sample.labels["entry_point"]] = sample.value
        latency = HistogramMetricFamily(
            "keybearer_validation_duration_seconds",
            "How long verdicts took to reach, the network left out.",
            labels=["entry_point"],
        )
        for entry_point, of_bound in sorted(counts.items()):
            cumulative = accumulate(of_bound.get(bound, 0.0) for bound in _BOUNDS)
            buckets = list(zip(_BOUNDS, cumulative, strict=True))
            latency.add_metric([entry_point], buckets, sums.get(entry_point, 0.0))
        yield latency


class PrometheusMetrics:
    """A Recorder that Prometheus can ask."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._verdicts = Counter(
            "keybearer_validations",
            "Verdicts about tokens.",
            ["entry_point", "outcome"],
            registry=self._registry,
        )
        self._latency_counts = Counter(
            _LATENCY_COUNTS,
            "Verdicts by the smallest bound that their latency does not exceed.",
            ["entry_point", "le"],
            registry=self._registry,
        )
        self._latency_sums = Counter(
            _LATENCY_SUMS,
            "Seconds that verdicts took.",
            ["entry_point"],
            registry=self._registry,
        )
        self._calls = Counter(
            "keybearer_management_calls",
            "Calls that manage accounts, users and keys, by method and status code.",
            ["method", "code"],
            registry=self._registry,
        )
        self._refusals = Counter(
            "keybearer_refusals",
            "Denials by an entry point, and refused callers of our own methods (grpc), by reason.",
            ["where", "reason"],
            registry=self._registry,
        )
        self._overloads = Counter(
            "keybearer_overloaded_calls",
            "Calls refused because too many of their kind wait, of all callers or of one account.",
            ["executor", "bound"],
            registry=self._registry,
        )
        self._gauges = {
            name: Gauge(f"keybearer_{name}", text, registry=self._registry, multiprocess_mode=mode)
            for name, text, mode in _GAUGES
        }
        self._expiring = Gauge(
            "keybearer_live_keys",
            "Keys neither revoked nor expired, by days until they expire.",
            ["days"],
            registry=self._registry,
            multiprocess_mode="livemostrecent",
        )
        self._notes: deque[tuple[EntryPoint, Outcome, float, int]] = deque(maxlen=MAX_NOTES)
        self._folding = threading.Lock()
        self._stopping = threading.Event()
        self._outage = OutageLog("metrics_failed")
        self._thread: threading.Thread | None = None

    # --- what the service records -----------------------------------------------------------------

    def judged(
        self, entry_point: EntryPoint, outcome: Outcome, seconds: float, count: int = 1
    ) -> None:
        """Note verdicts."""
        self._notes.append((entry_point, outcome, seconds, count))

    def called(self, method: str, code: str) -> None:
        """Count one management call."""
        self._calls.labels(method.rpartition("/")[2], code).inc()

    def refused(self, where: str, reason: str) -> None:
        """Count one refusal."""
        self._refusals.labels(where, reason).inc()

    def overloaded(self, executor: str, bound: str) -> None:
        """Count one call for which there was no room."""
        self._overloads.labels(executor, bound).inc()

    # --- what Prometheus is shown -----------------------------------------------------------------

    def start(self, probe: Probe, expiries: Callable[[], Mapping[str, int]]) -> None:
        """Begin to fold, and to read the gauges.

        Args:
            probe: Returns the gauges that are read every second.
            expiries: Returns the live keys by days to expiry; read once a minute.
        """
        self._thread = threading.Thread(
            target=self._run, args=(probe, expiries), name="metrics", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Fold what is left and end."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self._fold()

    def render(self) -> tuple[bytes, str]:
        """Return every metric of all processes in Prometheus' text format, and its content type."""
        self._fold()
        registry = self._registry
        if os.environ.get(DIRECTORY_VARIABLE):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        shown = CollectorRegistry()
        shown.register(_WithLatency(registry))
        return prometheus_client.generate_latest(shown), CONTENT_TYPE

    def _run(self, probe: Probe, expiries: Callable[[], Mapping[str, int]]) -> None:
        turn = 0
        while True:
            self._survive(self._fold)
            self._survive(lambda: self._read_gauges(probe))
            if turn % 60 == 0:
                self._survive(lambda: self._read_expiries(expiries))
            turn += 1
            if self._stopping.wait(FOLD_INTERVAL_S):
                return

    def _fold(self) -> None:
        with self._folding:
            notes = [self._notes.popleft() for _ in range(len(self._notes))]
            verdicts: Tally[tuple[EntryPoint, Outcome]] = Tally()
            latencies: Tally[tuple[EntryPoint, int]] = Tally()
            sums: dict[EntryPoint, float] = defaultdict(float)
            for entry_point, outcome, seconds, count in notes:
                verdicts[entry_point, outcome] += count
                latencies[entry_point, bisect_left(LATENCY_BOUNDS, seconds)] += count
                sums[entry_point] += seconds * count
            for (entry_point, outcome), count in verdicts.items():
                self._verdicts.labels(entry_point, outcome.name).inc(count)
            for (entry_point, index), count in latencies.items():
                self._latency_counts.labels(entry_point, _BOUNDS[index]).inc(count)
            for entry_point, total in sums.items():
                self._latency_sums.labels(entry_point).inc(total)

    def _read_gauges(self, probe: Probe) -> None:
        for name, value in probe().items():
            self._gauges[name].set(value)
        self._outage.recovered()

    def _read_expiries(self, expiries: Callable[[], Mapping[str, int]]) -> None:
        for days, count in expiries().items():
            self._expiring.labels(days).set(count)

    def _survive(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - metrics are never worth more than the service
            self._outage.failed(error)


def prepare(directory: Path) -> dict[str, str]:
    """Empty the directory of metrics; return the environment of the processes that share it.

    Called before they are started: what lies there belongs to processes that have ended.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    for file in directory.glob("*.db"):
        file.unlink()
    return {DIRECTORY_VARIABLE: str(directory)}


def forget(directory: Path, pid: int) -> None:
    """Remove a process that has ended from the gauges; what it counted stays counted."""
    multiprocess.mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
