"""The data path in a process of its own, so that its memory can be measured: `python -m … UPSTREAM_PORT`."""

import sys

from tests.front import front

if __name__ == "__main__":
    with front(int(sys.argv[1]), client_timeout_s=60, read_timeout_s=60) as gateway:
        print(gateway.port, flush=True)
        gateway.join_forever()
