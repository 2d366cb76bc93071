"""One line for each event, on stderr: text on a terminal, JSON elsewhere. uvicorn's lines have the same form.

A JSON line has `timestamp`, `message`, `level`, `program` and the event's own fields. `severity` is Google Cloud's name
for the level. Events of a request have its `request_id`, and its `trace_id` if it came with a `traceparent`. Google
Cloud links a line to a trace by `logging.googleapis.com/trace`.
"""

import logging
import sys

import structlog

from gateway.observability.lines import SEVERITIES


def configure(*, as_json: bool, level: str, program: str, google_project: str | None = None) -> None:
    """Set up logging for this process. Every line names `program`.

    `level` is the lowest that is written. `google_project` completes the names of traces.
    """
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
    # Tracebacks without local variables, which may hold tokens, keys and bodies.
    bare = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
    plain = structlog.dev.plain_traceback
    render: list[structlog.types.Processor] = (
        [
            bare,
            _for_google(google_project),
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ]
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
    # The error handler of the application logs unexpected errors, with the request's id.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "Exception in ASGI" not in record.getMessage())


def _named(program: str) -> structlog.types.Processor:
    def add(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        event.setdefault("program", program)
        return event

    return add


def _for_google(project: str | None) -> structlog.types.Processor:
    def add(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        event["severity"] = SEVERITIES.get(str(event.get("level")), "DEFAULT")
        if trace_id := event.get("trace_id"):
            event["logging.googleapis.com/trace"] = f"projects/{project}/traces/{trace_id}" if project else trace_id
        if span_id := event.get("span_id"):
            event["logging.googleapis.com/spanId"] = span_id
        return event

    return add
