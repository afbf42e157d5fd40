"""Prometheus figures of the service.

Labels are bounded: entry points, outcomes, reasons, own methods, status codes, spans of days. Never
a key, an account, a peer, or anything that a caller can choose.

What happens on every validation is only noted, which takes a fraction of a microsecond; once a
second, and before every scrape, the notes are folded into the figures. With several processes each
writes its figures into files of one directory (PROMETHEUS_MULTIPROC_DIR, as prometheus_client has
it), and whichever process is scraped answers for all.
"""

import os
import threading
from bisect import bisect_left
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess

from keybearer._wire.enums import Outcome
from keybearer_service.telemetry.recorder import EntryPoint

log = structlog.get_logger(__name__)

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where several processes keep their figures. prometheus_client reads it when it is imported."""
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

_GAUGES: tuple[tuple[str, str, Literal["livesum", "livemax", "livemostrecent"]], ...] = (
    ("watch_streams", "Open watch streams.", "livesum"),
    ("watch_lag_revisions", "Revisions that watch streams were not told yet.", "livemax"),
    ("store_bytes", "Size of the database and its log.", "livemostrecent"),
    ("store_revision", "The newest revision.", "livemostrecent"),
    ("queued_calls", "Validations that wait for a thread.", "livesum"),
    ("queued_uses", "Secrets with uses that are not written yet.", "livesum"),
    ("log_lines_dropped", "Log lines lost because nobody read them, since the start.", "livesum"),
)
"""Name, meaning, and how the values of several processes become one."""

Probe = Callable[[], Mapping[str, float]]
"""Answers figures of the moment, by the name of the gauge without `keybearer_`."""


class _FoldedHistogram(Histogram):
    """A histogram that takes many observations at once, sorted into its buckets already."""

    def add(self, counts: Mapping[int, int], total: float) -> None:
        """Count observations, by the index of their bucket, and add their sum."""
        for index, count in counts.items():
            self._buckets[index].inc(count)
        self._sum.inc(total)


class PrometheusMetrics:
    """An Recorder that Prometheus can ask."""

    def __init__(self) -> None:
        """Make the figures. `start` begins to fold."""
        self._registry = CollectorRegistry()
        self._verdicts = Counter(
            "keybearer_validations",
            "Verdicts about tokens.",
            ["entry_point", "outcome"],
            registry=self._registry,
        )
        self._latency = _FoldedHistogram(
            "keybearer_validation_duration_seconds",
            "How long verdicts took to reach, the network left out.",
            ["entry_point"],
            buckets=LATENCY_BOUNDS,
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
        self._notes: deque[tuple[EntryPoint, Outcome, float]] = deque(maxlen=MAX_NOTES)
        self._folding = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # --- what the service tells -------------------------------------------------------------------

    def judged(self, entry_point: EntryPoint, outcome: Outcome, seconds: float) -> None:
        """Note one verdict."""
        self._notes.append((entry_point, outcome, seconds))

    def called(self, method: str, code: str) -> None:
        """Count one management call."""
        self._calls.labels(method.rpartition("/")[2], code).inc()

    def refused(self, where: str, reason: str) -> None:
        """Count one refusal."""
        self._refusals.labels(where, reason).inc()

    # --- what Prometheus is told ------------------------------------------------------------------

    def start(self, probe: Probe, expiries: Callable[[], Mapping[str, int]]) -> None:
        """Begin to fold, and to look at what nobody tells.

        Args:
            probe: Answers the gauges that are looked at every second.
            expiries: Answers the live keys by days to expiry; looked at once a minute.
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
        """Answer every figure, of all processes, in Prometheus' text format, and its name."""
        self._fold()
        registry = self._registry
        if os.environ.get(DIRECTORY_VARIABLE):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return prometheus_client.generate_latest(registry), CONTENT_TYPE

    def _run(self, probe: Probe, expiries: Callable[[], Mapping[str, int]]) -> None:
        turn = 0
        while True:
            self._survive(self._fold)
            self._survive(lambda: self._look(probe))
            if turn % 60 == 0:
                self._survive(lambda: self._look_at_expiries(expiries))
            turn += 1
            if self._stopping.wait(FOLD_INTERVAL_S):
                return

    def _fold(self) -> None:
        with self._folding:
            notes = [self._notes.popleft() for _ in range(len(self._notes))]
            verdicts = Tally((entry_point, outcome) for entry_point, outcome, _ in notes)
            for (entry_point, outcome), count in verdicts.items():
                self._verdicts.labels(entry_point, outcome.name).inc(count)
            for entry_point in {entry_point for entry_point, _ in verdicts}:
                seconds = [one for noted_at, _, one in notes if noted_at is entry_point]
                buckets = Tally(bisect_left(LATENCY_BOUNDS, one) for one in seconds)
                self._latency.labels(entry_point).add(buckets, sum(seconds))

    def _look(self, probe: Probe) -> None:
        for name, value in probe().items():
            self._gauges[name].set(value)

    def _look_at_expiries(self, expiries: Callable[[], Mapping[str, int]]) -> None:
        for days, count in expiries().items():
            self._expiring.labels(days).set(count)

    @staticmethod
    def _survive(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - figures are never worth more than the service
            log.warning("metrics_failed", cause=type(error).__name__)


def prepare(directory: Path) -> dict[str, str]:
    """Empty the directory of figures, and answer the environment of the processes that share it.

    For whoever starts the processes, before it does: what lies there is of processes that are gone.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    for file in directory.glob("*.db"):
        file.unlink()
    return {DIRECTORY_VARIABLE: str(directory)}


def forget(directory: Path, pid: int) -> None:
    """Take a process that has ended out of the gauges; what it counted stays counted."""
    multiprocess.mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]
