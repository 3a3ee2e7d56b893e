"""One tree of exceptions for the library, the command line and the wire.

Every class carries how it is told to the outside: `code` names it on the wire, `http_status` is its answer
over HTTP, `exit_code` is the exit code of the command line. A message is one line: what is wrong, and what
to do. What is not an `EdvitError` is a defect, and its detail never leaves the process.
"""

from __future__ import annotations

import codecs
import errno

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a quota, the process's own limit: of a write that nothing in this program could have made succeed."""


_escaped = codecs.getencoder("unicode_escape")
"""Looked up now: the first look-up imports a module, which fails where no file handle is left."""


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would obey: control characters, line ends, directions."""
    return "".join(c if c.isprintable() else _escaped(c)[0].decode("ascii") for c in text)


class EdvitError(Exception):
    """Root of the tree. Raise a subclass. Its message is one line, whatever a peer or a file put into it."""

    code = "internal"
    http_status = 500
    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


# --- what the user gave ------------------------------------------------------------------------------------


class UserError(EdvitError):
    """Something the user gave cannot be used as it is."""

    code = "bad-input"
    http_status = 400
    exit_code = 2


class ConfigError(UserError):
    """A setting or a combination of settings makes no sense."""

    code = "bad-config"


class FleetError(UserError):
    """A fleet file cannot be read, or describes no possible fleet."""

    code = "bad-fleet"


class DataError(UserError):
    """A data set is missing, incomplete or unusable."""

    code = "bad-data"


class ModelError(UserError):
    """A model is unknown, or of a kind that cannot be split."""

    code = "bad-model"


class WeightsError(UserError):
    """A weights file is unreadable, unsafe or of another architecture."""

    code = "bad-weights"


class BundleError(UserError):
    """A bundle is incomplete, altered or of an unknown version."""

    code = "bad-bundle"


class InfeasibleError(UserError):
    """No assignment meets the fleet's limits.

    Attributes:
        submodel: id of the sub-model that fits nowhere.
        constraint: `"memory"` (bytes) or `"energy"` (joules).
        shortfall: by how much the roomiest device fails, in the constraint's unit.
    """

    code = "infeasible"

    def __init__(self, message: str, *, submodel: int, constraint: str, shortfall: float) -> None:
        super().__init__(message)
        self.submodel = submodel
        self.constraint = constraint
        self.shortfall = shortfall


class ImageError(UserError):
    """A request's image cannot be decoded, or is not of the expected shape."""

    code = "bad-image"


class SoundError(ImageError):
    """A request's sound cannot be decoded."""

    code = "bad-sound"


class UnsupportedMediaError(ImageError):
    """A request's body is not of a kind that is understood."""

    code = "unsupported-media"
    http_status = 415


class TooLargeError(ImageError):
    """A request's body or image is larger than what is accepted."""

    code = "too-large"
    http_status = 413


class CostlyFileError(ImageError):
    """Decoding a request's file takes longer than what is accepted."""

    code = "too-costly"
    http_status = 422


class SlowUploadError(UserError):
    """The body of a request did not arrive in time."""

    code = "slow-upload"
    http_status = 408


class TooManyRequestsError(UserError):
    """One client asks more of the gateway than its share while others wait."""

    code = "too-many-requests"
    http_status = 429


class UnauthorizedError(UserError):
    """A request carries no token that the gateway knows."""

    code = "unauthorized"
    http_status = 401


class ForbiddenError(UserError):
    """A request's token lacks the scope for what it asks."""

    code = "forbidden"
    http_status = 403


class RateLimitError(UserError):
    """One client asks more often than it may.

    Attributes:
        retry_after_s: when it may ask again, seconds; 1 where that is not known.
    """

    code = "rate-limit"
    http_status = 429
    retry_after_s: int = 1


class MissingExtraError(UserError):
    """A command needs an optional part of the package that is not installed."""

    code = "missing-extra"


class PortInUseError(UserError):
    """An address to listen on is taken."""

    code = "port-in-use"


# --- what happened at run time -----------------------------------------------------------------------------


class ServiceError(EdvitError):
    """A running system could not do what was asked."""

    code = "service"
    http_status = 503


class WireError(ServiceError):
    """A message from a peer is malformed, too large, or contradicts itself."""

    code = "bad-message"
    http_status = 502


class VersionError(WireError):
    """A peer speaks another version of the wire protocol."""

    code = "wire-version"


class DeadlineError(ServiceError):
    """An answer did not come in time."""

    code = "deadline"
    http_status = 504


class UnavailableError(ServiceError):
    """No device, gateway or peer is there to answer."""

    code = "unavailable"


class OverloadedError(ServiceError):
    """More is asked of the gateway than it can work on."""

    code = "overloaded"


class FleetTakenError(ServiceError):
    """Another gateway is in charge of the fleet, with another bundle."""

    code = "fleet-taken"


class DeployError(ServiceError):
    """A gateway cannot take over a new bundle, or has given it up; it serves the old one."""

    code = "deploy"


class MemoryLimitError(ServiceError):
    """A device refuses a sub-model that would pass its memory limit."""

    code = "memory-limit"


class DigestError(ServiceError):
    """Bytes that arrived do not have the digest they were asked for by."""

    code = "digest-mismatch"
    http_status = 502


class BuildError(EdvitError):
    """A build stage ended with a result that must not be used (an export that differs, say)."""

    code = "build"


def error_from(code: str, message: str) -> EdvitError:
    """The error that a peer reported by its `code`; `ServiceError` where this version does not know the code."""
    kind = _by_code().get(code, ServiceError)
    return kind(message)


def _by_code() -> dict[str, type[EdvitError]]:
    """Every class that is made from a message alone; where a subclass shares its parent's code, the parent."""
    kinds: dict[str, type[EdvitError]] = {}
    waiting: list[type[EdvitError]] = [EdvitError]
    for kind in waiting:
        waiting += kind.__subclasses__()
        if kind.__init__ is EdvitError.__init__:  # else it wants more than a message
            kinds.setdefault(kind.code, kind)
    return kinds
