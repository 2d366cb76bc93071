"""The settings of a command that uses the store itself."""

from gateway.config import Settings, load_settings


def store_settings(store: str | None, user_id: str | None) -> Settings:
    """Return the settings of the environment, with the options `--store` and `--user-id` where they are given.

    Raises ConfigError. It does not matter where a gateway would listen, and whether keys are set for that.
    """
    given = {"store": store, "user_id": user_id, "HOST": "127.0.0.1"}
    return load_settings(**{name: value for name, value in given.items() if value is not None})
