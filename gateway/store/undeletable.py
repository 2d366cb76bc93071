"""A store that nothing is ever deleted from."""

from gateway.errors import StoreDenied
from gateway.store.through import Through


class Undeletable(Through):
    """`store`, for credentials that may write and not delete: `delete` raises StoreDenied and asks nobody."""

    async def delete(self, key: str) -> None:
        raise StoreDenied(
            f"delete {self.url}{key}: GATEWAY_STORE_NEVER_DELETE is set, so nothing is ever deleted",
            "unset it, or delete with other credentials",
        )
