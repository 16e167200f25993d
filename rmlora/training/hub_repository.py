"""Sending an adapter package to the Hugging Face hub, with huggingface_hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rmlora.errors import ConfigError, OutputError
from rmlora.library_calls import library_call

__all__ = ["HubRepository"]


@dataclass(frozen=True)
class HubRepository:
    """A repository that may be written to."""

    name: str
    """``owner/name``."""

    @classmethod
    def make(cls, name: str, *, private: bool) -> HubRepository:
        """Make the repository if there is none. Called before training, so that hours of work do not end at a missing token.

        Args:
            name: ``owner/name``, or a name, which then belongs to the user whose token is used.
            private: a new repository is seen by its owner only; an existing one stays as it is.

        Raises:
            ConfigError: there is no token.
            OutputError: the name is invalid, the token may not write there, or the hub cannot be reached.
        """
        from huggingface_hub import HfApi, get_token

        if not get_token():
            raise ConfigError(
                "--push-to-hub needs a token of the Hugging Face hub: log in with  hf auth login  or set HF_TOKEN."
            )

        def refuse(reason: str) -> OutputError:
            return OutputError(
                f"The hub's repository '{name}' cannot be made ({reason}): check the name given to --push-to-hub, the rights of the "
                "token, and the network."
            )

        with library_call(refuse):
            return cls(HfApi().create_repo(name, private=private or None, exist_ok=True).repo_id)

    def upload(self, package: Path) -> str:
        """Send the files of a package, and return the address of its page.

        Args:
            package: directory of the adapter.

        Raises:
            OutputError: the hub refused, or cannot be reached.
        """
        from huggingface_hub import HfApi

        def refuse(reason: str) -> OutputError:
            return OutputError(
                f"The adapter is complete in {package}, but the hub did not take it ({reason}): send it with  "
                f"hf upload {self.name} {package}."
            )

        with library_call(refuse):
            api = HfApi()
            api.upload_folder(
                repo_id=self.name, folder_path=package, commit_message="Upload an adapter trained with rmlora-deploy"
            )
            return f"{api.endpoint}/{self.name}"
