"""Every command of `chroma-gateway`.

- `main`             the table of all commands; reads the arguments, shows errors and returns the exit code
- `options`          options and arguments that several commands have
- `client`           which gateway a command talks to, and with which token; the client is `gateway.admin`
- `hints`            hints of the gateway as options and commands
- `offline`          reads a store where no gateway runs, with `store_settings`; `store_check` tries one
- `output`           prints; `progress_bars` draws
- `folder_training`  training in the process of `ingest`

Every other module has one command, or a few that belong together.

Results go to stdout; progress and errors go to stderr. `serve` and the program `gateway` are servers: their stderr is
a log, and their errors are log events.
"""
