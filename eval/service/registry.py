"""The MLflow registry: versions of models that point to checkpoints, and their aliases."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

log = logging.getLogger("eval.service")
PATH_TAGS = ("path", "checkpoint")
"""Tags of a version or of its logged model that name the checkpoint folder."""


def bound_waiting() -> None:
    """A dead server must not hold a call for minutes, which it does by default."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@dataclass(frozen=True)
class Version:
    """A version of a registered model, and where its checkpoint lies."""

    model: str
    version: int
    checkpoint: Path | None
    """None: it does not say."""


class Registry:
    """Registered models at one MLflow address; every call may raise what MLflow raises."""

    def __init__(self, uri: str, models: Sequence[str] = ()) -> None:
        self._uri = uri
        self._models = tuple(models)
        self._client: Any = None

    def versions(self, known: frozenset[tuple[str, int]]) -> Iterator[Version]:
        """Versions of the watched models in order, without those that are `known`."""
        client = self._connect()
        for model in self._models or tuple(m.name for m in _all_pages(client.search_registered_models)):
            quote = '"' if "'" in model else "'"
            found = _all_pages(client.search_model_versions, filter_string=f"name = {quote}{model}{quote}")
            for one in sorted(found, key=lambda v: int(v.version)):
                if (model, int(one.version)) not in known:
                    yield Version(model, int(one.version), _checkpoint_of(client, one))

    def alias(self, model: str, name: str) -> int | None:
        """See `Aliases.alias`."""
        found = self._connect().get_registered_model(model).aliases.get(name)
        return int(found) if found is not None else None

    def set_alias(self, model: str, name: str, version: int) -> None:
        """See `Aliases.set_alias`."""
        self._connect().set_registered_model_alias(model, name, str(version))

    def _connect(self) -> Any:
        if self._client is None:
            bound_waiting()
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        return self._client


def _all_pages(search: Any, **query: Any) -> list[Any]:
    found, token = [], None
    while True:
        page = search(**query, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _checkpoint_of(client: Any, version: Any) -> Path | None:
    """What the version's tags say, else its logged model's, else its source where that is a local folder."""
    named = _from_tags(version.tags)
    source = version.source or ""
    model_id = getattr(version, "model_id", None) or (
        source.removeprefix("models:/") if "models:/m-" in source else None
    )
    if named is None and model_id:
        named = _from_tags(client.get_logged_model(model_id).tags)
    if named is not None:
        return named
    parsed = urlparse(source)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return Path(source) if parsed.scheme == "" and source else None


def _from_tags(tags: Any) -> Path | None:
    return next((Path(tags[name]) for name in PATH_TAGS if tags.get(name)), None)
