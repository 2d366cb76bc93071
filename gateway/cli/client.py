"""Which gateway a command talks to, and with which token."""

from gateway.admin import Admin
from gateway.admin.http import is_loopback, parse_url
from gateway.auth.admin_token import TOKEN_FILE
from gateway.config import URL_FILE, Settings, load_settings
from gateway.errors import ConfigError


def connect(url: str | None, token: str | None) -> Admin:
    """The client of the gateway that the settings and the options `--url` and `--token` name.

    Raises ConfigError if a setting or an option is wrong, or if there is no token for that gateway.
    """
    settings = load_settings()
    target = base_url(settings, url)
    found = find_token(settings, target, token)
    if found is None:
        of_another = TOKEN_FILE.exists() and not _is_of_this_directory(settings, target)
        raise ConfigError(
            f"there is no admin token for {target}: GATEWAY_ADMIN_TOKEN is not set, and {TOKEN_FILE} "
            + ("is of another gateway" if of_another else "cannot be read here"),
            "use --token, or run the command in the directory where the gateway runs",
        )
    # Proxies of the environment are for other machines. The gateway of the settings runs on this one.
    return Admin(target, token=found, use_proxies=None if url else False)


def base_url(settings: Settings, url: str | None = None) -> str:
    """The URL of the gateway, without a slash at the end.

    It is `url` if given, else where HOST and PORT say that it listens. Without them it is the URL of the gateway that
    was started in this directory. Raises ConfigError if `url` is not an HTTP URL.
    """
    if url is None:
        is_told = {"host", "port"} & settings.model_fields_set
        return settings.local_url if is_told else _served_url() or settings.local_url
    try:
        parse_url(url)
    except ConfigError as error:
        raise ConfigError(f"--url {error.message}", error.hint) from None
    return url.rstrip("/")


def find_token(settings: Settings, url: str, token: str | None = None) -> str | None:
    """The admin token for the gateway at `url`: `token` if given, else GATEWAY_ADMIN_TOKEN, else the token file's.

    The file has the token of the gateway of this directory. It is sent to no other one. None if there is none.
    """
    if token is not None:
        return token
    if settings.admin_token is not None:
        return settings.admin_token.get_secret_value()
    if not _is_of_this_directory(settings, url):
        return None
    try:
        return TOKEN_FILE.read_text().strip() or None
    except OSError:
        return None


def _is_of_this_directory(settings: Settings, url: str) -> bool:
    """Whether the gateway at `url` may be the one that was started in this directory."""
    asked, served = parse_url(url), _served_url()
    if served is None:
        return is_loopback(asked.host) or url == settings.local_url
    known = parse_url(served)
    same_host = asked.host == known.host or (is_loopback(asked.host) and is_loopback(known.host))
    return same_host and asked.scheme == known.scheme and asked.port == known.port


def _served_url() -> str | None:
    """The URL that the last gateway in this directory noted; None without one."""
    try:
        url = URL_FILE.read_text().strip()
        parse_url(url)
    except (OSError, ConfigError):
        return None
    return url
