"""`export` and `import`: a snapshot as a plain tar of a Chroma directory, and back."""

import tarfile
from pathlib import Path
from typing import Annotated

import typer

from gateway.admin import Body
from gateway.cli.client import connect
from gateway.cli.options import AsJson, Scratch, StoreUrl, Token, Url, UserId
from gateway.cli.output import whole_file
from gateway.cli.progress_bars import ProgressBars
from gateway.cli.snapshots import open_store, print_snapshot
from gateway.errors import ConfigError
from gateway.jobs import counted


def export_archive(
    path: Annotated[Path, typer.Argument(help="The tar to write; '-' is standard output.")],
    snapshot: Annotated[str, typer.Option(help="A snapshot's id, or 'latest'.")] = "latest",
    url: Url = None,
    token: Token = None,
    store: StoreUrl = None,
    user_id: UserId = None,
    scratch: Scratch = None,
) -> None:
    """Write a snapshot as a plain tar of a directory that Chroma opens without a gateway."""
    with ProgressBars.on_terminal(as_json=False) as bars, whole_file(path) as file:
        if store is not None:
            open_store(store, user_id).export(snapshot, file, scratch or Path.cwd(), bars.progress)
        else:
            with connect(url, token) as gateway:
                gateway.snapshots.download(snapshot, file, on_bytes=counted(bars.progress, "download"))


def import_archive(
    path: Annotated[Path, typer.Argument(help="A Chroma directory of chromadb 0.4 or newer, or a tar of one.")],
    label: Annotated[str | None, typer.Option(help="A label for people.")] = None,
    url: Url = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Make a snapshot of a Chroma directory or a tar of one. No Chroma may be using the directory."""
    body = _as_tar(path)
    with connect(url, token) as gateway, ProgressBars.on_terminal(as_json=as_json) as bars:
        uploaded = counted(bars.progress, "upload")
        snapshot = gateway.snapshots.upload(body, label, on_job=bars.show_job, on_bytes=uploaded)
    print_snapshot(snapshot, as_json)


def _as_tar(path: Path) -> Body:
    """A tar to upload.

    Raises ConfigError if `path` is neither a tar nor a directory, or if a file in the directory is a link.
    """
    if not path.exists():
        raise ConfigError(f"there is no {path}", "name a Chroma directory, or a tar of one")
    if path.is_dir():
        # These load much that other commands do not need.
        from gateway.chroma.directory import refuse_links  # noqa: PLC0415
        from gateway.snapshot.tar import tar, tar_size  # noqa: PLC0415

        refuse_links(path)
        return Body(tar(path), tar_size(path))
    if not tarfile.is_tarfile(path):
        raise ConfigError(f"{path} is neither a directory nor a tar", "name a Chroma directory, or a tar of one")
    return Body.of_file(path)
