"""`zoo push`: publish the model of a run on the Hugging Face hub."""

import argparse
import os
import tempfile
from pathlib import Path

from zoo.errors import BadInput

HELP = "publish the model of a run on the Hugging Face hub, with a model card"
LOADS_PYTORCH = True  # which takes seconds: the command line says so first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run", help="a run folder, or a checkpoint of train.py")
    parser.add_argument("repository", help="owner/name")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument(
        "--licence", help="of the weights: an identifier such as apache-2.0, or a file"
    )
    parser.add_argument(
        "--no-pictures", action="store_true", help="leave out the pictures of the run"
    )
    parser.add_argument("--dry-run", metavar="FOLDER", help="only write the files to this folder")


def run(args: argparse.Namespace) -> None:
    """Publish a model, and print where it is.

    Raises:
        ZooError: The run cannot be read, or the hub refuses.
    """
    written = push(
        args.run,
        args.repository,
        private=args.private,
        licence=args.licence,
        pictures=not args.no_pictures,
        dry_run=args.dry_run,
    )
    if args.licence is None:
        print("no licence is stated; name one with --licence, such as --licence apache-2.0")
    print(f"wrote {written}" if args.dry_run else f"published at {written}")


def push(
    run: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    licence: str | None = None,
    pictures: bool = True,
    dry_run: str | os.PathLike[str] | None = None,
) -> str:
    """Publish the model of a run on the Hugging Face hub, like `zoo push`.

    The repository has the weights as safetensors, timm's `config.json`, and a model card made from
    the run: data, recipe, accuracy, latency and pictures. `zoo.create_model` loads it as
    `"hf-hub:owner/name"`; so does timm.

    Args:
        run: A run folder, or a checkpoint of `zoo train`.
        repository: `owner/name`; it is created if it does not exist.
        private: Create a private repository.
        licence: Of the weights: an identifier such as `"apache-2.0"`, or a file; None states none.
        pictures: Add the pictures of the run; those of a segmentation show validation images.
        dry_run: Only write the files to this folder.

    Returns:
        The address of the repository, or the folder.

    Raises:
        BadInput: An argument is invalid, or the hub refuses or cannot be reached.
        BadWeights: The run cannot be read.
    """
    from zoo.commands import resolve
    from zoo.commands.export import load_model
    from zoo.hub import plain_name
    from zoo.publication import folder
    from zoo.publication.upload import upload
    from zoo.settings import ExportRun
    from zoo.training.checkpoint import folder_of

    source, name = os.fspath(run), plain_name(repository)
    if "@" in name:
        raise BadInput(f"{repository}: models are published on the main branch; leave @... out")
    saved = resolve.read_weights(source)
    if not saved.is_run:
        raise BadInput(f"{source} does not say which model it belongs to; give a run folder")
    if saved.is_qat:
        raise BadInput(
            f"{source} was trained with train.qat, which no other program can load; give the float"
            " run, or publish the file that zoo export writes"
        )
    _, model, origin = load_model(ExportRun(weights=source), {}, saved)
    options = {"licence": licence, "with_pictures": pictures}
    written = (name, model, origin, saved.content, folder_of(saved.path))
    if dry_run is not None:
        target = Path(dry_run).expanduser()
        folder.write(target, *written, **options)
        return str(target)
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "repository"
        folder.write(target, *written, **options)
        return upload(target, name, private=private)
