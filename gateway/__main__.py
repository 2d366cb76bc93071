"""`python -m gateway` and `chroma-gateway`."""

import sys


def main() -> None:
    """Run the command in `sys.argv`, and exit with its code."""
    match sys.argv[1:]:
        # As platforms run it. Importing the parser of arguments takes longer than everything else that `serve` does.
        case ["serve"]:
            _serve(None)
        case ["serve", "--config", config]:
            _serve(config)
        case _:
            from gateway.cli.main import main as run_command  # noqa: PLC0415

            run_command()


def _serve(config: str | None) -> None:
    from pathlib import Path  # noqa: PLC0415

    from gateway.server.program import program  # noqa: PLC0415
    from gateway.supervisor.serve import serve  # noqa: PLC0415

    with program("serve"):
        serve(Path(config) if config is not None else None)


if __name__ == "__main__":
    main()
