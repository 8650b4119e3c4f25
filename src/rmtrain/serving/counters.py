"""Counters of the server, in the text format of Prometheus."""

from collections import Counter
from dataclasses import dataclass, field

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


@dataclass
class Counters:
    """Counters of a server since its start."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)  # by path and status
    seconds: Counter[float] = field(default_factory=Counter)  # requests by the smallest bound on their time
    seconds_sum: float = 0.0
    rewards: int = 0
    refused: int = 0
    truncated: int = 0
    batches: int = 0
    scoring_seconds: float = 0.0

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests[path, status] += 1
        self.seconds[next((bound for bound in _BOUNDS if seconds <= bound), float("inf"))] += 1
        self.seconds_sum += seconds

    def scored(self, rows: int, seconds: float) -> None:
        """Count a batch of rows of one or more requests."""
        self.batches += 1
        self.rewards += rows
        self.scoring_seconds += seconds

    def text(self, rows_waiting: int) -> str:
        """All figures in Prometheus' format."""
        lines = ["# TYPE rmtrain_requests_total counter"]
        lines += [
            f'rmtrain_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        lines.append("# TYPE rmtrain_request_seconds histogram")
        total = 0
        for bound in (*_BOUNDS, float("inf")):
            total += self.seconds[bound]
            lines.append(f'rmtrain_request_seconds_bucket{{le="{bound if bound < float("inf") else "+Inf"}"}} {total}')
        lines += [f"rmtrain_request_seconds_sum {self.seconds_sum}", f"rmtrain_request_seconds_count {total}"]
        for name, kind, value in (
            ("rewards_total", "counter", self.rewards),
            ("rows_refused_total", "counter", self.refused),
            ("rows_truncated_total", "counter", self.truncated),
            ("batches_total", "counter", self.batches),
            ("scoring_seconds_total", "counter", self.scoring_seconds),
            ("rows_waiting", "gauge", rows_waiting),
        ):
            lines += [f"# TYPE rmtrain_{name} {kind}", f"rmtrain_{name} {value}"]
        return "\n".join(lines) + "\n"
