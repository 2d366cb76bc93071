"""Every command of `chroma-gateway`.

`main` reads the arguments, shows errors and returns the exit code. `client` is the HTTP client of the admin API,
`offline` reads a store where no gateway runs, and `output` prints. The options that many commands have are in
`options`. Every other module is one group of commands and has a function `register`, which adds them.

Results go to stdout; progress and errors go to stderr. `serve` and the program `gateway` are servers: their stderr is
a log, and their errors are log events.
"""

from gateway.light_imports import without_rich

without_rich("structlog")
