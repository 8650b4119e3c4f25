"""The server's process: a socket, uvicorn, and a graceful stop."""

import contextlib
import ipaddress
import socket
import sys

import uvicorn

from rmtrain.errors import InputError
from rmtrain.serving.app import ServerLimits, make_app
from rmtrain.serving.online import OnlineScorer

_STOP_SECONDS = 30  # seconds for running requests to finish
_SWITCH_SECONDS = 0.0005  # between threads; by default, answers wait 5 ms for the tokenising thread


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free port.

    Raises:
        InputError: the address is not available.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise InputError(f"can't listen on {host}, port {port}: {error}", "choose another --port or --host") from error


def is_loopback(listener: socket.socket) -> bool:
    """Whether a socket can be reached only from this machine."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def serve(scorer: OnlineScorer, limits: ServerLimits, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM, then finish running requests."""
    config = uvicorn.Config(
        make_app(scorer, limits),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    sys.setswitchinterval(_SWITCH_SECONDS)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has stopped
        uvicorn.Server(config).run([listener])
