"""The program `gateway` of supervisord.conf: `python -m gateway.server`. Its errors are log lines and exit codes."""

import sys

import structlog

from gateway.config import load_settings
from gateway.errors import GatewayError
from gateway.observability import logs


def main() -> None:
    """Serve until told to stop. The exit code says what went wrong; see `gateway.errors`."""
    # Until the settings are read, which may be what fails.
    logs.configure(as_json=not sys.stderr.isatty(), level="info", program="gateway")
    try:
        settings = load_settings()
        logs.configure(
            as_json=settings.logs_as_json,
            level=settings.log_level,
            program="gateway",
            google_project=settings.google_project,
        )
        from gateway.server.listen import serve  # noqa: PLC0415  # a wrong setting is told without waiting for it

        serve(settings)
    except GatewayError as error:
        structlog.get_logger().critical(error.message, hint=error.hint, exit_code=error.exit_code)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
