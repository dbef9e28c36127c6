"""Read files of tensors: recognised by content, whatever their names, without running code.

Formats: safetensors, both of torch's own, NumPy's npz, and a zip file that contains one of these.
"""

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from zoo import stand_ins
from zoo.errors import BadWeights, first_line, shown

# A packed file may unpack to this multiple of its size, and to this size in any case.
MAX_RATIO, SMALL = 20, 1 << 26
_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".tar", ".pkl", ".npz", ".th")
# Parts of torch's messages about a pickle that names a class or function outside its safe list.
_FOREIGN_CODE = ("GLOBAL ", "Can only create new object", "Trying to call", "Can only build")
_NOT_TENSORS = (
    (rb"<(!doctype|html|\?xml|head)", "is a web page; download the file itself"),
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the file; run git lfs pull"),
    (rb"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (rb"BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "is a compressed archive; unpack it first"),
    (rb"\x89HDF", "is an HDF5 file, which is not supported; convert it to safetensors"),
    (rb".{4}TFL3", "is a TensorFlow Lite file, which is not supported"),
)


def read(path: Path) -> dict[str, Any]:
    """Read everything in a file, provided that it is only tensors and plain values.

    Args:
        path: The file.

    Raises:
        BadWeights: The file is missing, damaged, no file of tensors, or would run code.
    """
    name = shown(path)
    try:
        if not path.is_file():
            kind = "is not a file" if path.exists() else "does not exist"
            raise BadWeights(
                f"{name} {kind}; give a file, a run folder, or an address (https or hf:)"
            )
        if path.stat().st_size == 0:
            raise BadWeights(f"{name} is empty; download or save it again")
        with path.open("rb") as file:
            content = _read(file, name, path)
    except (OSError, ValueError) as error:
        if isinstance(error, BadWeights):
            raise
        raise BadWeights(f"{name} cannot be read: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise BadWeights(
            f"{name} contains a {type(content).__name__}, not a dictionary of weights; "
            "save the model's state_dict()"
        )
    return content


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def _read(file: IO[bytes], name: str, path: Path | None) -> Any:
    """Read an open file.

    Args:
        file: The file, or its bytes.
        name: Its name, for messages.
        path: Its path, if it is on the disk; a file inside a zip file has none.
    """
    head = file.read(512)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    for pattern, what in _NOT_TENSORS:
        if re.match(pattern, head.lstrip(b"\xef\xbb\xbf \r\n\t"), re.IGNORECASE | re.DOTALL):
            raise BadWeights(f"{name} {what}")
    if head.startswith(b"PK\x03\x04"):
        return _guarded(lambda: _read_zip(file, name, path is not None), name)
    if _is_safetensors(head, size):
        return _guarded(lambda: _read_safetensors(file, path), name)
    if head[257:262] == b"ustar":
        raise BadWeights(f"{name} is a tar archive; unpack it and give the file inside")
    return _guarded(lambda: _read_torch(file, pickles=4), name)


def _guarded(reader: Callable[[], Any], name: str) -> Any:
    """Call `reader`; damaged files raise errors of any kind."""
    try:
        return reader()
    except BadWeights:
        raise
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in _FOREIGN_CODE):
            raise BadWeights(
                f"{name} contains more than weights (reading this pickle would run code); save the"
                " model's state_dict() and load that"
            ) from error
        raise BadWeights(f"{name} is truncated or not a checkpoint") from error
    except Exception as error:
        raise BadWeights(
            f"{name} is truncated or not a checkpoint ({first_line(error)})"
        ) from error


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 8 + length <= size


def _read_safetensors(file: IO[bytes], path: Path | None) -> dict[str, Any]:
    from safetensors.torch import load, load_file

    return load(file.read()) if path is None else load_file(path)


def _read_zip(file: IO[bytes], name: str, may_contain: bool) -> Any:
    """Read a zip file: torch's format, npz, or one that contains a single checkpoint."""
    with zipfile.ZipFile(file) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        names = [entry.filename for entry in entries]
        unpacked = sum(entry.file_size for entry in entries)
        file_size = file.seek(0, io.SEEK_END)
        if unpacked > max(MAX_RATIO * file_size, SMALL):
            raise BadWeights(
                f"{name} would unpack to {unpacked:,} bytes, far more than its size; it is not"
                " a file of weights"
            )
        if any(entry.endswith("/constants.pkl") for entry in names):
            raise BadWeights(
                f"{name} is a TorchScript program, not a checkpoint; save the state_dict() of"
                " torch.jit.load(file)"
            )
        pickled = [entry for entry in names if re.fullmatch(r"[^/]+/data\.pkl", entry)]
        if not pickled and may_contain and not all(entry.endswith(".npy") for entry in names):
            return _read_member(archive, _only_member(names, name), name)
        # torch does not check the sums of its files; all are 0 if its writer left them out.
        damaged = archive.testzip() if any(entry.CRC for entry in entries) else None
        if damaged is not None:
            raise BadWeights(
                f"{name} is damaged: the checksum of {shown(damaged)} does not fit;"
                " download or save it again"
            )
        if not pickled:
            return _read_npz(file)
    file.seek(0)
    record = torch._C.PyTorchFileReader(file).get_record("data.pkl")
    return _load_torch(file, stand_ins.global_names(record))


def _only_member(names: list[str], name: str) -> str:
    """Return the only checkpoint in a zip file."""
    found = [
        entry
        for entry in names
        if entry.lower().endswith(_SUFFIXES)
        and not entry.startswith("__MACOSX/")
        and not Path(entry).name.startswith(".")
    ]
    if len(found) != 1:
        listed = ", ".join(map(shown, found[:3])) + (" ..." if len(found) > 3 else "")
        count = f"{len(found)} checkpoints ({listed})" if found else "no checkpoint"
        raise BadWeights(f"{name} is a zip file with {count}; unpack it and give one file")
    return found[0]


def _read_member(archive: zipfile.ZipFile, member: str, name: str) -> Any:
    return _read(io.BytesIO(archive.read(member)), f"{name}, file {shown(member)},", None)


def _read_npz(file: IO[bytes]) -> dict[str, Any]:
    import numpy as np

    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _read_torch(file: IO[bytes], pickles: int) -> Any:
    """Read torch's format of before 1.6, which is a sequence of pickles and then the tensors."""
    foreign: set[str] = set()
    try:
        foreign = stand_ins.global_names(file, pickles)
    except Exception:  # no such file; torch says so
        foreign = set()
    return _load_torch(file, foreign)


def _load_torch(file: IO[bytes], names: set[str]) -> Any:
    """Load torch's format with stand-ins for the foreign classes among `names`."""
    try:
        return _load_with(file, stand_ins.for_foreign_classes(names, stand_ins.Table))
    except (TypeError, ValueError, AttributeError):  # an object with another kind of state
        return _load_with(file, stand_ins.for_foreign_classes(names, stand_ins.Record))


def _load_with(file: IO[bytes], foreign: stand_ins.Allowed) -> Any:
    allowed = stand_ins.plain_values() + foreign
    file.seek(0)
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about formats that are refused anyway
        return torch.load(file, map_location="cpu", weights_only=True)
