"""Models of the Hugging Face hub: downloaded once into its cache, then a folder like any other."""

from __future__ import annotations

from pathlib import Path

from engine.errors import CheckpointError

_WANTED = ("*.json", "*.safetensors", "*.model", "*.jinja")
_UNWANTED = ("*/*", "consolidated*")  # the same weights once more, in another layout


def hub_folder(name: str, revision: str | None) -> Path:
    """The folder of a hub model, with its config, tokenizer and safetensors files.

    huggingface_hub's own rules hold: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE. Raises
    CheckpointError if the model does not exist, is gated, has no safetensors, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            name, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
        )
    except Exception as error:  # its network stacks raise errors of many unrelated classes
        raise CheckpointError(_explain(name, revision, error)) from error
    folder = Path(snapshot)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{name}: the hub has no safetensors weights of this model; choose another, or convert "
            "it with transformers and give the folder"
        )
    return folder


def _explain(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{name}: gated; accept its terms at {constants.ENDPOINT}/{name} and set HF_TOKEN to a "
            "token of that account"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: the hub knows no revision {revision!r} of this model"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name}: neither a folder here nor a model of the hub "
            "(if it is private, set HF_TOKEN); check the name"
        )
    if constants.HF_HUB_OFFLINE:
        return (
            f"{name}: not in the hub's cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids "
            "the download; unset it once, or give a folder"
        )
    reason = str(error).strip().split("\n")[0]
    return (
        f"{name}: cannot be fetched from {constants.ENDPOINT} ({reason}); "
        "try again later, or give a folder"
    )
