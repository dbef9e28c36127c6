"""Fetch one file of a repository on the Hugging Face hub; without a network, within seconds."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.errors import first_line

_SECONDS = 3.0  # to wait for the first answer of the hub
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


_PREFIX = re.compile(r"hf[-_]hub:", re.IGNORECASE)


def is_repository(name: object) -> bool:
    """Return whether a name means a repository: `hf-hub:...`, or timm's older `hf_hub:...`."""
    return isinstance(name, str) and _PREFIX.match(name) is not None


class HubProblem(Exception):
    """Why a file could not be fetched, in words for a message."""


class NoSuchFile(HubProblem):
    """The repository has no such file."""


def fetch(
    repository: str,
    file: str,
    revision: str | None = None,
    *,
    cache_dir: str | Path | None = None,
    refresh: bool = False,
) -> Path:
    """Return the path of a file in the hub's cache, downloading it if it is new.

    If the hub does not answer, the file in the cache is taken, without trying again and again.

    Args:
        repository: `owner/name`.
        file: Its path in the repository.
        revision: A branch, a tag or a commit; None for the main branch.
        cache_dir: Folder of downloaded files; None for that of the hub's client.
        refresh: Download the file again, although it is in the cache.

    Raises:
        HubProblem: It cannot be fetched, and is not in the cache.
    """
    import huggingface_hub

    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    url = huggingface_hub.hf_hub_url(repository, file, **options)
    options |= {} if cache_dir is None else {"cache_dir": cache_dir}
    download = functools.partial(huggingface_hub.hf_hub_download, repository, file, **options)
    silence = _silence(lambda: huggingface_hub.get_hf_file_metadata(url, timeout=_SECONDS))
    if silence is None:
        refreshed = {"force_download": True} if refresh else {}
        return Path(explained(lambda: download(**refreshed)))
    try:
        return Path(download(local_files_only=True))
    except Exception as error:
        raise HubProblem(silence) from error


def _silence(call: Callable[[], Any]) -> str | None:
    """Return why the hub does not answer; None if it answers, be it with a refusal."""
    from huggingface_hub.errors import FileMetadataError

    try:
        call()
    except FileMetadataError:
        return None
    except Exception as error:  # of the HTTP library, or the setting HF_HUB_OFFLINE
        return first_line(error) if _status(error) is None else None
    return None


def explained(call: Callable[[], Any]) -> Any:
    """Return the result of a call of the hub's client.

    Raises:
        HubProblem: It failed; the message says why, and what to do.
    """
    from huggingface_hub import errors

    try:
        return call()
    except errors.GatedRepoError as error:
        raise HubProblem(
            f"its owner has to let you in: accept the terms on its page, then {LOG_IN}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubProblem(f"there is no such repository, or it is private: {LOG_IN}") from error
    except errors.RevisionNotFoundError as error:
        raise HubProblem("the repository has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        raise _other(error) from error
    except errors.EntryNotFoundError as error:
        raise NoSuchFile("the repository has no such file") from error
    except errors.HFValidationError as error:
        raise HubProblem("give owner/name with letters, digits, -, _ and .") from error
    except errors.LocalTokenNotFoundError as error:
        raise HubProblem(f"you are not logged in: {LOG_IN}") from error
    except Exception as error:  # the client raises errors of its HTTP library, and OSError
        raise _other(error) from error


def _other(error: Exception) -> HubProblem:
    """Return what an error means for which the client has no type of its own."""
    if _status(error) == 404:  # of a server that does not say more
        return NoSuchFile("there is no such repository or file")
    return HubProblem(_refusal(error))


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status that an error, or one that caused it, is about."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return status
        error = error.__cause__ or error.__context__
    return None


def _refusal(error: Exception) -> str:
    """Return what an error of the hub's client means."""
    status = _status(error)
    if status == 401:
        return f"the hub does not know you: {LOG_IN}"
    if status == 403:
        return "your token may not do this; use one with the right to write to this repository"
    said = getattr(error, "server_message", None)
    if status is None:
        return first_line(error)
    return f"the hub answers {status}" + (f": {first_line(Exception(said))}" if said else "")
