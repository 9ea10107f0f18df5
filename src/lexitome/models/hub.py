"""Weights in repositories on Hugging Face: what its tools have downloaded, and, if the user names one, its download.

No torch here. `huggingface_hub` comes with transformers; without it nothing is found.
"""

from __future__ import annotations

import re
from pathlib import Path

from lexitome.errors import InputError

PREFIX = "hf:"
_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_FOLDER_FILES = ["*.json", "*.txt", "*.txt.gz", "*.safetensors"]
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def is_named(typed: str) -> bool:
    """Whether this names a repository: `hf:OWNER/NAME[/FILE]`; `OWNER/NAME` only if it was downloaded earlier.

    A path that was mistyped must not be asked for on the internet.
    """
    repository, file = parse(typed)
    return _NAME.fullmatch(repository) is not None and (
        typed.startswith(PREFIX) or cached(repository, file) is not None
    )


def parse(typed: str) -> tuple[str, str]:
    """(repository, file in it or "")."""
    parts = typed.removeprefix(PREFIX).split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def cached(repository: str, file: str = "") -> Path | None:
    """What was downloaded: the file, or the folder where there is a model of transformers; None for nothing."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = [try_to_load_from_cache(repository, name) for name in ((file,) if file else _WEIGHTS)]
    except HFValidationError:
        return None
    place = next((Path(each) for each in found if isinstance(each, str)), None)
    return place if place is None or file else place.parent


def fetch(typed: str, *, remedy: str, file: str = "") -> Path:
    """Download what is not here yet, with the progress bars of Hugging Face.

    Args:
        typed: as for `is_named`.
        remedy: what to tell users if it cannot be had.
        file: what to take of the repository if `typed` names no file; "" for a folder of transformers.

    Raises:
        InputError: there is no such repository, its licence was not accepted, or it cannot be reached.
    """
    repository, named = parse(typed)
    wanted = named or file
    here = cached(repository, wanted)
    if here is not None:
        return here
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        cause = "is not on this machine, and huggingface_hub, which downloads, is not installed"
        raise InputError(typed, cause, "Type: pip install huggingface_hub") from error
    try:
        if wanted:
            return Path(hf_hub_download(repository, wanted))
        folder = Path(snapshot_download(repository, allow_patterns=_FOLDER_FILES))
    except GatedRepoError as error:
        raise InputError(typed, "its licence has not been accepted with the account of this machine", remedy) from error
    except RepositoryNotFoundError as error:
        raise InputError(typed, "there is no such repository, or it is private", remedy) from error
    except RemoteEntryNotFoundError as error:
        raise InputError(typed, f"holds no {wanted}", remedy) from error
    except Exception as error:  # offline, time-out, disk full: many kinds of several libraries
        cause = f"cannot be downloaded ({str(error).splitlines()[0][:160] or type(error).__name__})"
        raise InputError(typed, cause, remedy) from error
    if not any(folder.glob("*.safetensors")):
        raise InputError(typed, "holds no model.safetensors", f"Name the file: {PREFIX}{repository}/FILE.")
    return folder
