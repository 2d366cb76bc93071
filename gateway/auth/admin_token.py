"""The admin token: `GATEWAY_ADMIN_TOKEN`, or one that is generated once and kept in a file with mode 0600."""

import secrets
from pathlib import Path

from gateway.errors import ConfigError, GatewayError
from gateway.files import write_durably

TOKEN_FILE = Path("var/admin-token")


def read_or_make(path: Path) -> str:
    """The token in `path`. If the file does not exist, it is created (mode 0600) with a new token.

    Safe when several processes call it at once. Raises ConfigError if the file can be neither read nor created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_durably(path, f"{secrets.token_urlsafe(32)}\n".encode(), replace=False)
        token = path.read_text().strip()
    except (OSError, GatewayError) as error:
        raise ConfigError(
            f"the admin token's file {path} cannot be used: {error}", "set GATEWAY_ADMIN_TOKEN"
        ) from error
    if len(token) < 16:
        raise ConfigError(f"{path} holds no usable token", f"remove {path}, or set GATEWAY_ADMIN_TOKEN")
    return token
