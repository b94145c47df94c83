"""Exits with 0 if GET /health on this machine answers 200: the images' health check.

`python3 -I -S healthcheck.py VARIABLE PORT`: the port is the variable's, where that is set. It
prints the answer, so that `docker inspect` tells what does not work. Standard library only.
"""

from __future__ import annotations

import http.client
import os
import sys

_TIMEOUT = 8.0  # of a real inference; less than the timeout of the check itself


def main() -> int:
    """Ask once; return the exit status."""
    variable, default = sys.argv[1:]
    port = int(os.environ.get(variable) or default)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)  # past any proxy
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        print(answer.status, answer.read(4000).decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer from port {port}: {error}")
        return 1
    finally:
        connection.close()
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
