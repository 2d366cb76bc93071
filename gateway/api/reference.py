"""`/docs` and `/chroma/docs`: pages that describe the gateway's and Chroma's routes, with Swagger UI.

Everything that they load comes from this process, so they work without a network. Swagger UI's files are those of the
package fastapi-swagger.
"""

from importlib.metadata import distribution

import httpx
from fastapi import APIRouter, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from gateway.api.deps import SettingsOf
from gateway.chroma.process import base_url, http_client
from gateway.errors import Unavailable

_CHROMA_TIMEOUT_S = 5.0
_SCRIPT, _STYLE = "swagger-ui-bundle.js", "swagger-ui.css"
_CACHE = {"Cache-Control": "public, max-age=3600"}
_PARAMETERS = {
    "persistAuthorization": True,  # in the browser, so that a key is typed once
    "defaultModelsExpandDepth": 0,
    "displayRequestDuration": True,
    "validatorUrl": None,  # else Swagger UI sends the document to a site of its own
}

router = APIRouter(include_in_schema=False)


def _page(title: str, openapi_url: str) -> HTMLResponse:
    page = get_swagger_ui_html(
        openapi_url=openapi_url,
        title=title,
        swagger_js_url=f"/docs/{_SCRIPT}",
        swagger_css_url=f"/docs/{_STYLE}",
        swagger_favicon_url="data:,",
        swagger_ui_parameters=_PARAMETERS,
    )
    # A page around it could lead the clicks of a person who is signed in to the console.
    page.headers["Content-Security-Policy"] = "frame-ancestors 'none'"
    return page


def _file(name: str, media_type: str) -> FileResponse:
    path = distribution("fastapi-swagger").locate_file(f"fastapi_swagger/resources/{name}")
    return FileResponse(str(path), media_type=media_type, headers=_CACHE)


@router.get("/docs")
async def gateway_page() -> HTMLResponse:
    return _page("Chroma Gateway", "/openapi.json")


@router.get(f"/docs/{_SCRIPT}")
async def script() -> FileResponse:
    return _file(_SCRIPT, "text/javascript")


@router.get(f"/docs/{_STYLE}")
async def style() -> FileResponse:
    return _file(_STYLE, "text/css")


@router.get("/chroma/docs")
async def chroma_page() -> HTMLResponse:
    return _page("Chroma", "/chroma/openapi.json")


@router.get("/chroma/openapi.json")
async def chroma_openapi(settings: SettingsOf) -> Response:
    """Chroma's own document, as its `GET /openapi.json` answers. The paths in it are those of the gateway too."""
    try:
        async with http_client(base_url(settings.chroma_port), _CHROMA_TIMEOUT_S) as client:
            answer = await client.get("/openapi.json")
            answer.raise_for_status()
    except httpx.HTTPError as error:
        raise Unavailable("Chroma did not answer with a description of its API", "GET /readyz says why") from error
    return Response(answer.content, media_type="application/json")
