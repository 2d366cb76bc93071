"""What an operator sees: logs, health and status."""
