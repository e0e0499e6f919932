"""What a gateway counts of its requests, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter, defaultdict

METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "POST"}
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class RequestCounts:
    """Requests and their seconds, by method, route and status. Belongs to one event loop."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._seconds: defaultdict[tuple[str, str, str], float] = defaultdict(float)

    def add(self, method: str, route: str | None, status: int | None, seconds: float) -> None:
        """A request that is over; ``route`` None is that of no route, ``status`` None of a client that left first."""
        labels = (method if method in METHODS else "other", route or "none", "left" if status is None else str(status))
        self._requests[labels] += 1
        self._seconds[labels] += seconds

    def text(self, running: int) -> str:
        """Everything, and the turns that are ``running`` now."""
        lines = [
            "# HELP trtstream_gateway_turns_running Turns that run or wait.",
            "# TYPE trtstream_gateway_turns_running gauge",
            f"trtstream_gateway_turns_running {running}",
            "# HELP trtstream_gateway_request_seconds Requests, and the seconds until their last byte.",
            "# TYPE trtstream_gateway_request_seconds summary",
        ]
        for labels, count in sorted(self._requests.items()):
            method, route, status = labels
            names = f'{{method="{method}",route="{route}",status="{status}"}}'
            lines.append(f"trtstream_gateway_request_seconds_count{names} {count}")
            lines.append(f"trtstream_gateway_request_seconds_sum{names} {self._seconds[labels]:.6f}")
        return "\n".join(lines) + "\n"
