"""What a route takes: the parameters of its URL and the fields of its body. A misspelt one is refused, not ignored."""

import difflib
from typing import get_args

from fastapi import Request
from pydantic import BaseModel

from gateway.errors import InvalidRequest


def require_known_parameters(request: Request) -> None:
    """Raise InvalidRequest if the URL has a parameter that the route does not take: `?wiat=false` would wait."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if dependant is None or not request.query_params:
        return
    known = [field.alias for field in dependant.query_params]
    for name in request.query_params:
        if name not in known:
            message = f"query.{name[:80]}: there is no such parameter"
            near = difflib.get_close_matches(name, known, 1)
            if near:
                message += f"; did you mean {near[0]}?"
            elif name in fields_of_body(request):
                message += f"; send {name} as a field of a JSON body"
            takes = f"this route takes {', '.join(known)}" if known else "this route takes no parameters"
            raise InvalidRequest(message, f"{takes}; GET /docs describes every route")


def fields_of_body(request: Request) -> list[str]:
    """The names that the JSON body of a request's route may have."""
    field = getattr(request.scope.get("route"), "body_field", None)
    annotation = field.field_info.annotation if field is not None else None
    models = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
    return [name for model in models if issubclass(model, BaseModel) for name in model.model_fields]
