"""Connections to a Ray cluster's job server, with errors that name the cause and the remedy.

Ray's own client raises exceptions of four libraries; here each becomes a `UserError`. What is done with a connection
is in `jobs`.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from resnet_ops.config_base import quoted
from resnet_ops.environment import with_variable
from resnet_ops.errors import WORK_FAILED, UserError
from resnet_ops.orchestration import access_token, local_state
from resnet_ops.orchestration.connect import import_ray
from resnet_ops.orchestration.ray_internals import job_client_class

LOCAL = "http://127.0.0.1:8265"
TIMEOUT_S = (10, 60)  # to connect, and for a response; Ray's client would wait for ever
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"


class UnreachableError(UserError):
    """The job server does not respond; it may do so again soon, and the job may still be running."""


def is_job_server(cluster: str | None) -> bool:
    """Return whether `--cluster` names a job server rather than a cluster to connect to."""
    return cluster is not None and cluster.lower().startswith(("http://", "https://"))


def named_address() -> str | None:
    """Return the job server that Ray's environment variables name, or None."""
    for variable in (ADDRESS_VARIABLE, "RAY_ADDRESS"):
        if is_job_server(os.environ.get(variable)):
            return os.environ[variable]
    return None


def check_address(address: str) -> str:
    """Return the job server's address in the form that Ray's client takes.

    Raises:
        UserError: It is no address, or contains a password or token, which is then not repeated.
    """
    if "://" not in address:
        address = f"http://{address}"
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or not is_job_server(address):
        named = "The job server's address" if "@" in address or "?" in address else f"--cluster {address}"
        raise UserError(f"{named} is not a job server's address.", f"Addresses look like {LOCAL}.")
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError(
            f"--cluster {parts.scheme}://{host}... contains more than an address, perhaps a secret.",
            "Give the address only; put a token into RAY_AUTH_TOKEN or into the file set by RAY_AUTH_TOKEN_PATH.",
        )
    return f"{parts.scheme.lower()}://{parts.netloc}{parts.path.rstrip('/')}"


def connect(address: str | None) -> Any:
    """Connect to the job server at `address`, and return Ray's JobSubmissionClient.

    Without an address it is that of the environment variables, of this user's local cluster, or whatever listens on
    this machine: which may be anyone's program, and is sent no token.

    Raises:
        UserError: The address or the token is wrong, or what responds is no job server or too old.
        UnreachableError: Nothing responds.
    """
    address = address or named_address()
    local = local_state.running_cluster()
    if local is not None and address in (None, local.dashboard):
        address, headers = local.dashboard, _header(access_token.read(local.token_file))
    elif address is None:
        address, headers = LOCAL, {"Authorization": ""}  # without one, Ray would send a token that it knows
    else:
        address, headers = check_address(address), _header(_users_token())
    import_ray()
    client_class = job_client_class(TIMEOUT_S)
    # In Ray 2.60 the variables take precedence over the argument; the argument must.
    with explain_errors(address), with_variable(ADDRESS_VARIABLE, address):
        return client_class(address, headers=headers)


def _users_token() -> str:
    """Return the token, which Ray would read only if RAY_AUTH_MODE=token was set before its import."""
    return access_token.user_token() if os.environ.get("RAY_AUTH_MODE", "token").lower() == "token" else ""


def _header(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextlib.contextmanager
def explain_errors(address: str) -> Iterator[None]:
    """Turn what Ray's client raises within a `with` block into a `UserError`."""
    import requests
    from aiohttp import ClientError, WSServerHandshakeError
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:  # only its text says whether a token is missing or wrong
        raise _token_error(address, 401 if "Authentication required" in str(error) else 403) from None
    except WSServerHandshakeError as error:
        if error.status in (401, 403):
            raise _token_error(address, error.status) from None
        if error.status == 404:
            raise _server_error(address, "status code 404: The job does not exist") from None
        raise _unreachable_error(address, error) from error
    except (requests.ConnectionError, requests.Timeout, ConnectionError, TimeoutError, ClientError) as error:
        raise _unreachable_error(address, error) from error
    except (requests.RequestException, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _no_job_server_error(address) from error
    except RuntimeError as error:
        raise _server_error(address, str(error)) from error


def _token_error(address: str, status: int) -> UserError:
    sent = "requires a token, but none was sent" if status == 401 else "rejected the token"
    naming = f"Name it, and yours is sent: --cluster {quoted(address)}. " if status == 401 else ""
    return UserError(f"The Ray cluster at {address} {sent} (HTTP {status}).", naming + access_token.REMEDY)


def _unreachable_error(address: str, error: BaseException) -> UserError:
    causes = [error]
    while (deeper := causes[-1].__context__ or causes[-1].__cause__) and deeper not in causes:
        causes.append(deeper)
    text = " ".join(map(str, causes))  # urllib3 and aiohttp wrap the system's errors; often only their text is left
    host, port = urlsplit(address).hostname, urlsplit(address).port or 8265
    if any(isinstance(cause, socket.gaierror) for cause in causes) or "resolve" in text:
        reason = f"host {host} is unknown"
    elif "SSL" in text or "CERTIFICATE" in text:
        reason = "the TLS connection failed; Ray itself uses http, not https"
    elif "timed out" in text:
        reason = "the connection timed out"
    elif "refused" in text:
        reason = "nothing is listening there"
    else:
        reason = "the connection failed"
    return UnreachableError(
        f"No Ray job server can be reached at {address}: {reason}.",
        f"Check that the cluster is running. In Kubernetes: kubectl port-forward service/HEAD-SERVICE {port}:8265; "
        f"behind ssh: ssh -L {port}:localhost:8265 HEAD. Then use --cluster http://127.0.0.1:{port}.",
    )


def _no_job_server_error(address: str) -> UserError:
    return UserError(
        f"The server at {address} is not a Ray job server.",
        "Use the address of the head node's dashboard (port 8265 by default), not of its GCS (6379).",
    )


def _server_error(address: str, text: str) -> UserError:
    """Return the error for a response of the server, which Ray's client passes on as the text of a RuntimeError."""
    if "status code 404" in text and "does not exist" in text:
        return UserError(
            f"The cluster at {address} does not know the job, or no longer.",
            "A restarted head node forgets its jobs; their runs are still in the runs folder.",
            WORK_FAILED,
        )
    if "returned 404" in text:
        return _no_job_server_error(address)
    if "is running on the cluster" in text:
        version = text.removeprefix("Ray version ").split()[0]
        return UserError(f"The cluster at {address} runs Ray {version}, which is too old.", "Update it.")
    # The log's connection was cut, or a proxy reports that there is no response from the server.
    if "WebSocket" in text or any(f"status code {code}" in text for code in (502, 503, 504)):
        return _unreachable_error(address, TimeoutError("timed out"))
    lines = text.strip().rstrip(".").splitlines() or [""]
    last = lines[-1].strip() if "Traceback" in text else lines[0]  # of a traceback, the exception
    return UserError(f"The Ray job server at {address} failed: {last[:300]}.", "See its dashboard.log.", WORK_FAILED)
