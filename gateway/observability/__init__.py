"""What an operator sees: logs, metrics, traces, health and status.

1. `logs`      one line per event; `chroma_lines` turns Chroma's own into the same form; `requests` numbers them
2. `metrics`   what is counted where it happens; `collect` adds, when Prometheus asks, what can be asked for
3. `tracing`   spans, where OpenTelemetry is wanted
4. `health`    alive, ready or why not, and status; `api` serves it, `cli` shows it on one screen

`scripts/deploy` has alerts and a dashboard for these metrics; a test holds them to the names here.
"""
