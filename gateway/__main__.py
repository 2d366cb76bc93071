"""`python -m gateway` is `chroma-gateway`."""

from gateway.cli import main

main()
