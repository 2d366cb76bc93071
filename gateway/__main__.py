"""`python -m gateway` is `chroma-gateway`."""

from gateway.cli.main import main

main()
