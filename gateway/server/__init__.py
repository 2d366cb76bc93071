"""The process of one gateway: its objects, its start and its stop.

Vocabulary: the *container* holds what the process has once. The *lifecycle* is the order in which they start and
stop. A *program* is a process that serves: its errors are log lines and exit codes.

1. `program`    reads the settings and sets up the log
2. `container`  builds what serves and what runs beside it from the settings, and starts nothing
3. `listen`     claims the data directory and opens the port; serves the data path, probes, the admin application
4. `lifecycle`  restores, starts Chroma and the schedules; at a stop takes the final snapshot and gives the lease back
5. `admin`      builds the admin application, once data is served or somebody asks for it

`python -m gateway.server` is the program `gateway` of supervisord.conf.
"""
