"""`chroma-gateway serve`: Chroma and the gateway under supervisord."""

import configparser
import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

import gateway
from gateway.errors import ConfigError

_CONFIG_NAME = "supervisord.conf"
# sun_path holds 104 bytes on macOS, 108 on Linux, one of them the final NUL.
_MAX_SOCKET_PATH_BYTES = 103


def serve(config_file: Path | None, **variables: str | None) -> NoReturn:
    """Become supervisord in the working directory: same process, its signals and its exit status.

    By exec rather than by calling its `main`: that is 0.05 s slower once, but lives on 25 MB instead
    of what the command line may have imported. Settings are read by the gateway, since reading them takes longer than
    all that this does.

    `variables` are set in the environment of the programs, except those that are None.
    Raises ConfigError when there is nothing to run by, or another gateway runs here already.
    """
    path = _find(config_file)
    try:
        # Beside the socket, the first run keeps the admin token and the data here.
        Path("var").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make {Path('var').absolute()}: {error.strerror}", "run where you may write"
        ) from error
    _put_own_commands_first()
    if socket_path := _socket_path(path):
        _refuse_a_second(socket_path)
    # -P: the working directory is the user's, not a place to import from.
    argv = [sys.executable, "-P", "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(path)]
    if os.getuid() == 0:
        # The user that it is already. Without one, supervisord calls running as root critical.
        argv += ["--user", "0"]
    environment = {**os.environ, **{name: value for name, value in variables.items() if value is not None}}
    os.execve(sys.executable, argv, environment)  # noqa: S606  # nobody else's input is in it


def _find(config_file: Path | None) -> Path:
    if config_file:
        if not config_file.is_file():
            raise ConfigError(f"there is no {config_file}", "name an existing supervisord.conf")
        return config_file
    beside = Path(gateway.__file__).parents[1]  # in a checkout
    for path in (Path.cwd() / _CONFIG_NAME, beside / _CONFIG_NAME, *_installed()):
        if path.is_file():
            return path
    raise ConfigError(
        f"there is no {_CONFIG_NAME} in {Path.cwd()}, and none was installed",
        "install the package again, or name one with --config",
    )


def _installed() -> list[Path]:
    """Where a wheel put the file; empty for an editable install."""
    import importlib.metadata  # noqa: PLC0415  # a checkout has its own

    try:
        files = importlib.metadata.files("chroma-gateway") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name == _CONFIG_NAME]


def _put_own_commands_first() -> None:
    """Let supervisord find the `chroma-gateway` and `chroma` of this environment, activated or not."""
    # Not resolved: in a virtual environment `python` is a link to the one outside.
    own = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([own, os.environ.get("PATH", os.defpath)])


def _socket_path(config_file: Path) -> str | None:
    """Where supervisord will listen; None if it has to say that, or what is wrong with its configuration, itself."""
    parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(" ;", "\t;"))
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read(config_file)
    file = parser.get("unix_http_server", "file", fallback="%")
    return None if "%" in file else str(Path(file).absolute())


def _refuse_a_second(socket_path: str) -> None:
    # supervisord binds `<path>.<pid>` first.
    if len(os.fsencode(f"{socket_path}.{os.getpid()}")) > _MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"the path of a Unix socket may not be as long as {socket_path}", "use a shorter directory")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(socket_path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            raise ConfigError(
                f"cannot use {socket_path}: {error}", "it may belong to another user's gateway"
            ) from error
    raise ConfigError(
        f"another gateway already runs here, at {socket_path}",
        "stop it first, or start this one in another directory",
    )
