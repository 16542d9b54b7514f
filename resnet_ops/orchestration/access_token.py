"""The tokens of Ray clusters: where a user keeps one, and the files of those that resnet-ops makes.

Who has a cluster's token runs code on it, so a file with one must be readable by its owner only. Each cluster that is
started here has a token of its own, in a folder of its own; `~/.ray/auth_token` is the user's, and only read.
"""

import os
import secrets
import shlex
import stat
from pathlib import Path

from resnet_ops.errors import UserError

TOKEN_VARIABLE, FILE_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
REMEDY = (
    "Put the cluster's token into RAY_AUTH_TOKEN, into the file set by RAY_AUTH_TOKEN_PATH, or into "
    "~/.ray/auth_token; on its head node, `ray get-auth-token` prints it."
)


def file_in(folder: Path) -> Path:
    """Return the file with the token of a cluster whose folder it is."""
    return folder / "token"


def create(folder: Path) -> Path:
    """Write a new token into `folder`, which only this user can enter, and return its file."""
    file = file_in(folder)
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as new:
        new.write(secrets.token_hex(32))
    return file


def user_token() -> str:
    """Return the token that the user has set for clusters, from where Ray looks for it; '' if there is none.

    Raises:
        UserError: It cannot be read, or others can read it too.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        named = os.environ.get(FILE_VARIABLE)
        file = Path(named) if named else Path.home() / ".ray" / "auth_token"
        try:
            token = read(file)
        except FileNotFoundError:
            if named:
                raise UserError(f"{FILE_VARIABLE} is set to {file}, which does not exist.", REMEDY) from None
    if any(not "!" <= character <= "~" for character in token):  # the error of http.client would print it
        raise UserError("The cluster's token contains invalid characters.", REMEDY)
    return token


def read(file: Path) -> str:
    """Return the token in `file`.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It cannot be read, or others can read it too.
    """
    try:
        with file.open() as opened:
            status = os.fstat(opened.fileno())
            # As ssh with keys: one of the system's has the mode that it was given, as has a mounted secret.
            mounted = status.st_uid != os.getuid() or os.fstatvfs(opened.fileno()).f_flag & os.ST_RDONLY
            if status.st_mode & 0o077 and not mounted:
                raise UserError(
                    f"The token in {file} can be read or changed by other users of this machine (mode "
                    f"{stat.S_IMODE(status.st_mode):04o}), who can then run code on the cluster.",
                    f"Close it: chmod 600 {shlex.quote(str(file))}; if others may have read it, make a new one.",
                )
            return opened.read().strip()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"The token in {file} cannot be read: {reason}.", REMEDY) from None
