"""A store that nothing is ever deleted from."""

from gateway.errors import StorageDenied
from gateway.storage.wrapper import StorageWrapper


class NoDeleteStorage(StorageWrapper):
    """`store`, for credentials that may write and not delete: `delete` raises StorageDenied and asks nobody."""

    async def delete(self, key: str) -> None:
        raise StorageDenied(
            f"delete {self.url}{key}: GATEWAY_STORE_NEVER_DELETE is set, so nothing is ever deleted",
            "unset it, or delete with other credentials",
        )
