"""The console in a real browser. `scripts/test-console` runs these; `scripts/test` does not."""
