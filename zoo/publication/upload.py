"""Upload the folder of a repository to the Hugging Face hub."""

from pathlib import Path

from zoo.errors import BadInput
from zoo.hub_files import HubProblem, explained


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Create a repository if it does not exist, and add the files of a folder in one commit.

    Args:
        folder: The files.
        repository: `owner/name`.
        private: Whether a new repository is private; an existing one stays as it is.

    Returns:
        The address of the repository.

    Raises:
        BadInput: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="zoo")
    try:
        url = explained(lambda: api.create_repo(repository, private=private, exist_ok=True))
        explained(
            lambda: api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="Add the model"
            )
        )
    except HubProblem as error:
        raise BadInput(
            f"{repository} cannot be uploaded: {str(error).rstrip('.')}; --dry-run FOLDER writes"
            " the files only"
        ) from error
    return str(url)
