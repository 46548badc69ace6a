"""Repositories of datasets on the Hugging Face hub, and their copies in its cache where there is no network."""

import re
from pathlib import Path

import httpx
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from configs.errors import UserError
from eval.datasets.files import HUB, Tree

_FORM = re.compile(re.escape(HUB) + r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?/?")
_UNREACHABLE = (OSError, httpx.HTTPError, HfHubHTTPError)


def open_hub(place: str) -> Tree:
    """Files of hf://datasets/ORG/NAME[@REVISION]; the revision is resolved to a commit once, so that they match.

    Raises:
        UserError: no such repository or revision, no right to read it, or neither network nor a cached copy.
    """
    match = _FORM.fullmatch(place)
    if match is None:
        raise UserError(f"source {place!r}: allowed form is {HUB}ORG/NAME[@REVISION]")
    name, revision = match["name"], match["revision"]
    try:
        info = HfApi().dataset_info(name, revision=revision)
    except GatedRepoError:
        raise UserError(
            f"source {place}: its owner asks for agreement first; accept it on the hub and log in"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"source {place}: the hub has no such data set for you; check the name, or log in") from None
    except _UNREACHABLE as error:
        return _cached(place, name, revision, error)

    def fetch(path: str) -> Path:
        try:
            return Path(hf_hub_download(name, path, repo_type="dataset", revision=info.sha))
        except _UNREACHABLE as error:
            raise UserError(f"source {place}: {path!r} could not be fetched ({_line(error)}); try again") from None

    return Tree(place, [sibling.rfilename for sibling in info.siblings or ()], fetch)


def _cached(place: str, name: str, revision: str | None, error: Exception) -> Tree:
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, *_UNREACHABLE):
        raise UserError(
            f"source {place}: the hub cannot be reached ({_line(error)}) and holds no such revision in its cache here; "
            "download the files elsewhere and name their folder"
        ) from None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Tree(place, names, folder.joinpath)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
