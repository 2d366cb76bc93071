"""The admin token: given by `GATEWAY_ADMIN_TOKEN`, or made once and kept in a file only we can read."""

import os
import secrets
from pathlib import Path

from gateway.errors import ConfigError

TOKEN_FILE = Path("var/admin-token")


def read_or_make(path: Path) -> str:
    """The token in `path`, made (mode 0600) where the file does not exist. Safe against a race.

    Raises ConfigError when it can be neither read nor made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
        token = path.read_text().strip()
    except OSError as error:
        raise ConfigError(
            f"the admin token's file {path} cannot be used: {error}", "set GATEWAY_ADMIN_TOKEN"
        ) from error
    if len(token) < 16:
        raise ConfigError(f"{path} holds no usable token", f"remove {path}, or set GATEWAY_ADMIN_TOKEN")
    return token
