"""What an operator sees: logs, metrics, traces, health and status.

- `logs`          one line for each event; `lines` has the form of a line, `chroma_lines` gives it to Chroma's output
- `metrics`       counters that are increased where something happens
- `collector`     metrics that are read when Prometheus scrapes
- `alerts`        failures, sent to GATEWAY_ALERT_URL
- `tracing`       OpenTelemetry spans for requests to `/api/`
- `health`        liveness, readiness with its reason, and status
- `overview`      what the first page of the console shows; `advice` says what to do about each warning
- `memory`        the memory of this process, and how much there may be
- `check`         the production check: rules, and the facts that they look at

`scripts/deploy` has alerts and a dashboard. A test checks that the metrics that they use exist.
"""
