"""One line per event on stderr: readable on a terminal, JSON elsewhere. uvicorn's lines go the same way.

JSON has our `event` and `level`, and for Google Cloud the same as `message` and `severity`; events of a request have
its `request_id`, and of one that came with a `traceparent` its `trace_id`, again as Google Cloud names it too.
"""

import logging
import sys

import structlog

from gateway.observability.chroma_lines import SEVERITIES


def configure(*, as_json: bool, level: str, program: str, google_project: str | None = None) -> None:
    """Set up logging for this process; every line names `program`."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named(program),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
    )
    # Never with local variables: among them are tokens, keys and bodies.
    bare = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
    plain = structlog.dev.plain_traceback
    render: list[structlog.types.Processor] = (
        [bare, _for_google(google_project), structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("httpx", "httpcore", "botocore", "aiobotocore", "boto3", "aioboto3", "urllib3", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # What a route raised unexpectedly is logged where it is answered.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "Exception in ASGI" not in record.getMessage())


def _named(program: str) -> structlog.types.Processor:
    def add(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        event.setdefault("program", program)
        return event

    return add


def _for_google(project: str | None) -> structlog.types.Processor:
    def add(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        event["severity"] = SEVERITIES.get(str(event.get("level")), "DEFAULT")
        event["message"] = event.get("event")
        if trace_id := event.get("trace_id"):
            event["logging.googleapis.com/trace"] = f"projects/{project}/traces/{trace_id}" if project else trace_id
        if span_id := event.get("span_id"):
            event["logging.googleapis.com/spanId"] = span_id
        return event

    return add
