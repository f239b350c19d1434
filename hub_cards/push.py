"""Sending a folder to the Hub, through huggingface_hub: repository, branch, one commit.

huggingface_hub sends the contents first and commits last, and asks the Hub what it holds already: an upload that was
killed goes on when it is started again, and a half-sent folder is never seen. With `hf_xet` folders of very many files
are committed in several steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .check import files_of

IGNORED = ["**/.git/**", ".cache/**", "**/__pycache__/**", "*.partial"]
TRANSPORTS = ("httpx", "httpx2", "requests", "urllib3")  # huggingface_hub changes its client from time to time
LISTED = 40  # files that a plan names one by one
NO_TOKEN = (
    "There is no token of yours here. Make one with write access at https://huggingface.co/settings/tokens, then: hf "
    "auth login, or set HF_TOKEN."
)


class PushError(Exception):
    """What the Hub or the network refused, with the remedy."""


class NotAsked(PushError):
    """The Hub could not be asked at all: no token, no network."""


@dataclass
class PushSettings:
    """
    Where a folder goes.

    Args:
        repository: `owner/name`.
        kind: `model` or `dataset`.
        private: only for a new repository; one that exists keeps what it is.
        branch: made from main if it is not there.
        message: of the commit.
        update: commit to a repository that holds files already; files there that are not in the folder are removed.
    """

    repository: str
    kind: str = "model"
    private: bool = False
    branch: str = "main"
    message: str | None = None
    update: bool = False


def plan_push(folder: str | Path, settings: PushSettings, dry_run: bool = False) -> Iterator[str]:
    """What would be sent, line by line; asks the Hub only whether the repository is there, with `dry_run` if it can.

    Raises:
        PushError: a name that cannot be used or is taken, no token, no right, no network.
    """
    check_name(settings.repository)
    folder = Path(folder)
    files = files_of(folder)
    try:
        there = remote_files(settings)
        state = "new" if there is None else f"exists, {len(there)} files" if there else "exists, empty"
    except NotAsked as error:
        if not dry_run:
            raise
        yield f"The Hub was not asked whether {settings.repository} is there. {error}"
        there, state = None, "not known whether it is there"
    privacy = ", private" if settings.private and there is None else ""
    yield f"To {settings.kind} {settings.repository}, branch {settings.branch} ({state}{privacy}):"
    for path in files[:LISTED]:
        yield f"  {path.stat().st_size / 1e6:>10.2f} MB  {path.relative_to(folder)}"
    if len(files) > LISTED:
        yield f"  and {len(files) - LISTED} files more"
    yield f"  {sum(path.stat().st_size for path in files) / 1e6:>10.2f} MB  in {len(files)} files"
    gone = sorted(set(there or []) - {str(path.relative_to(folder)) for path in files})
    if gone:
        yield f"Removed there: {', '.join(gone[:10])}{' ...' if len(gone) > 10 else ''}"


def check_name(repository: str) -> None:
    """
    Raises:
        PushError: a name that no repository can have, or without its owner.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise PushError(f"{repository!r} is no name of a repository: {error}") from error
    if repository.count("/") != 1:
        raise PushError(f"{repository!r} does not say whose it is. Give OWNER/NAME.")


def check_token() -> None:
    """
    Raises:
        NotAsked: no token on this machine.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise NotAsked(NO_TOKEN)


def remote_files(settings: PushSettings) -> list[str] | None:
    """Files of the branch (of main, if it is new) but `.gitattributes`; None if there is no such repository.

    Raises:
        PushError: it holds files and `update` is not set, or the Hub cannot be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    with _explained(settings):
        who = api.whoami()["name"]
        for revision in (settings.branch, "main"):
            try:
                names = api.list_repo_files(settings.repository, repo_type=settings.kind, revision=revision)
                break
            except RevisionNotFoundError:
                names = []
            except RepositoryNotFoundError:
                return None
    names = [name for name in names if name != ".gitattributes"]
    if names and not settings.update:
        raise PushError(
            f"The name {settings.repository} is taken: it holds {len(names)} files already (you are {who}). Give "
            "--update to commit to it, or take another name."
        )
    return names


def push_folder(folder: str | Path, settings: PushSettings) -> str:
    """
    Sends a folder; returns the address of the commit.

    Args:
        folder: a folder that passed the check.
        settings: see [`PushSettings`].

    Raises:
        PushError: the Hub or the network refused.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _explained(settings):
        where: dict[str, Any] = {"repo_id": settings.repository, "repo_type": settings.kind}
        api.create_repo(**where, private=settings.private or None, exist_ok=True)
        if settings.branch != "main":
            api.create_branch(**where, branch=settings.branch, exist_ok=True)
        commit = api.upload_folder(
            **where,
            folder_path=folder,
            revision=settings.branch,
            commit_message=settings.message or f"Upload of {Path(folder).resolve().name}",
            ignore_patterns=IGNORED,
            delete_patterns="*" if settings.update else None,
        )
    return f"Published: {commit.commit_url}"


class _explained:
    """Turns huggingface_hub's and the network's errors into a `PushError` that says what to do."""

    def __init__(self, settings: PushSettings):
        self.name = settings.repository

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of a file that was on its way
            error = error.__cause__
        if isinstance(error, LocalTokenNotFoundError):
            raise NotAsked(NO_TOKEN) from error
        if isinstance(error, OfflineModeIsEnabled):
            raise NotAsked("HF_HUB_OFFLINE is set, so nothing is sent. Unset it and try again.") from error
        if isinstance(error, HfHubHTTPError):
            code = error.response.status_code if error.response is not None else None
            raise PushError(self.explain(code, str(error).splitlines()[0])) from error
        if isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in TRANSPORTS:
            raise NotAsked(
                f"The Hub ({constants.ENDPOINT}) cannot be reached: {error}. Look at the network, then give the same "
                "command again, with --update if a part was sent."
            ) from error

    def explain(self, code: int | None, message: str) -> str:
        """What a status code of the Hub means for a push."""
        owner = self.name.partition("/")[0]
        remedies = {
            401: "Your token is not accepted. Make a new one with write access: https://huggingface.co/settings/tokens.",
            403: f"Your token may not write to {owner}'s repositories. Take your own name, ask for the right, or make "
            "a token with write access.",
            404: f"There is no repository {self.name} that you may see, and it could not be made.",
            409: f"The name {self.name} is taken. Give another.",
            429: "Too many requests. Wait some minutes, then give the same command again with --update.",
        }
        remedy = remedies.get(
            code, "Give the same command again with --update; if it stays, see status.huggingface.co."
        )
        return f"The Hub refused ({code}): {message} {remedy}"


__all__ = [
    "NotAsked",
    "PushError",
    "PushSettings",
    "check_name",
    "check_token",
    "plan_push",
    "push_folder",
    "remote_files",
]
