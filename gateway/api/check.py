"""The route `/admin/check`."""

from fastapi import APIRouter

from gateway.api.deps import CheckOf
from gateway.observability.check.answers import CheckReport

router = APIRouter(prefix="/admin", tags=["status"])


@router.get("/check", summary="What production asks for, looked up on the live system")
async def check(production: CheckOf) -> CheckReport:
    """Answers 200 whatever it finds, also while Chroma or the store is down: those rules are then `unknown`.

    Changes nothing. It takes up to 5 s where the store does not answer.
    """
    return await production.run()
