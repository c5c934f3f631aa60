"""Read data sets in the formats that their authors chose.

Every reader takes the unpacked folder and the part, and returns images uint8 (N, H, W, C), labels int64 (N,) and the
names of the classes. Readers of photographs list files and labels; `read_pictures` makes them one array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from tinytrain_lite.errors import DatasetError
from tinytrain_lite.frontend.checkpoint import unpickle

__all__ = ["PHOTO_SIZE", "READERS", "folder", "read_pictures"]

PHOTO_SIZE = 128  # pixels; what photographs of several sizes become
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

Labelled = tuple[np.ndarray, np.ndarray, tuple[str, ...]]
Listing = tuple[list[Path], list[int], tuple[str, ...]]


def read_pictures(files: Sequence[Path]) -> np.ndarray:
    """Pictures as one array, uint8 (N, H, W, 3), or (N, H, W, 1) if all are grey.

    Pictures of one square size of at most PHOTO_SIZE stay as they are. Others are brought to PHOTO_SIZE on the shorter
    side (bilinear, antialiased) and cropped to the centre square. Raises DatasetError, naming the file.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DatasetError("pictures are read with Pillow: pip install 'tinytrain-lite[data]'") from error

    def attempt(file: Path, use: Callable[[Any], Any]) -> Any:
        try:
            with Image.open(file) as picture:
                return use(picture)
        except FileNotFoundError:
            raise DatasetError(f"{file} is missing; delete its folder and unpack the archive again") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DatasetError(f"{file} is not a picture that can be read: {error}") from error

    headers = [attempt(file, lambda picture: (picture.size, picture.mode)) for file in files]
    sizes = {size for size, _ in headers}
    mode = "L" if all(mode in ("1", "L") for _, mode in headers) else "RGB"
    (width, height) = next(iter(sizes))
    as_it_is = len(sizes) == 1 and width == height <= PHOTO_SIZE
    side = width if as_it_is else PHOTO_SIZE

    def pixels(picture: Any) -> np.ndarray:
        upright = ImageOps.exif_transpose(picture).convert(mode)
        if not as_it_is:
            upright = ImageOps.fit(upright, (side, side), Image.Resampling.BILINEAR)
        return np.asarray(upright).reshape(side, side, -1)

    out = np.empty((len(files), side, side, len(mode)), np.uint8)
    console = Console(stderr=True)
    bar = track(files, "reading pictures", console=console, transient=True, disable=not console.is_terminal)
    for target, file in zip(out, bar, strict=True):
        target[...] = attempt(file, pixels)
    return out


def folder(root: Path, part: str) -> Labelled:
    """Pictures in one sub-folder a class, in the order of their names: ``root/cat/1.jpg``.

    With ``root/train/cat/1.jpg`` and ``root/test/...`` there are two parts, otherwise only "train".
    """
    split = (root / "train").is_dir()
    if part == "test" and not split:
        raise DatasetError(f"{root} has no folders train and test; use split() to hold images out")
    learned = root / "train" if split else root
    files, labels, classes = _classes(learned, None)
    if part == "test":
        files, labels, classes = _classes(root / "test", classes)
    return _read((files, labels, classes))


def _classes(root: Path, known: tuple[str, ...] | None) -> Listing:
    """The pictures of a folder's sub-folders; labels index the sub-folders, or the ``known`` classes."""
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected one with a sub-folder of pictures for every class")
    titles = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not titles:
        raise DatasetError(f"{root} has no sub-folders; expected one with pictures for every class")
    classes = known or tuple(titles)
    files: list[Path] = []
    labels: list[int] = []
    for title in titles:
        if title not in classes:
            raise DatasetError(f"{root / title}: there is no class {title!r} among the training images")
        pictures = sorted(
            file
            for file in (root / title).iterdir()
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not pictures:
            raise DatasetError(f"{root / title} holds no pictures ({', '.join(sorted(SUFFIXES))})")
        files += pictures
        labels += [classes.index(title)] * len(pictures)
    return files, labels, classes


def _read(listing: Listing) -> Labelled:
    files, labels, classes = listing
    return read_pictures(files), np.array(labels, np.int64), classes


def _cifar10(root: Path, part: str) -> Labelled:
    names = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    return _cifar(root / "cifar-10-batches-py", names, "labels", "batches.meta", "label_names")


def _cifar100(root: Path, part: str) -> Labelled:
    return _cifar(root / "cifar-100-python", [part], "fine_labels", "meta", "fine_label_names")


def _cifar(root: Path, names: list[str], labels: str, meta: str, titles: str) -> Labelled:
    """Pickles of Python 2: rows of 3,072 bytes, red, green, blue, each 32x32 (www.cs.toronto.edu/~kriz/cifar.html)."""
    batches = [_pickle(root / name, "data", labels) for name in names]
    rows = np.concatenate([batch["data"] for batch in batches])
    images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    known = _pickle(root / meta, titles)[titles]
    return images, np.concatenate([np.array(batch[labels], np.int64) for batch in batches]), tuple(known)


def _pickle(path: Path, *keys: str) -> dict[str, Any]:
    try:
        content = unpickle(path.read_bytes(), encoding="latin1")
        if not isinstance(content, dict) or any(key not in content for key in keys):
            raise ValueError(f"not a dict with {', '.join(keys)}")
        return content
    except Exception as error:  # a hostile pickle can make the unpickler raise anything
        raise DatasetError(f"{path}: not a CIFAR file that can be read safely: {error}") from error


def _flowers(root: Path, part: str) -> Labelled:
    """The training part is the authors' training and validation images, 20 a class. The classes are numbers only."""
    ids = _mat(root / "setid.mat")
    keys = ("trnid", "valid") if part == "train" else ("tstid",)
    chosen = np.concatenate([np.atleast_1d(ids[key]) for key in keys]).astype(np.int64)
    labels = np.atleast_1d(_mat(root / "imagelabels.mat")["labels"]).astype(np.int64)
    files = [root / "jpg" / f"image_{number:05d}.jpg" for number in chosen]
    return _read((files, (labels[chosen - 1] - 1).tolist(), tuple(str(n) for n in range(1, 103))))


def _cars(root: Path, part: str) -> Labelled:
    annotations = root / ("devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat")
    rows = np.atleast_1d(_mat(annotations)["annotations"])
    files = [root / f"cars_{part}" / str(name) for name in rows["fname"]]
    classes = tuple(str(title) for title in np.atleast_1d(_mat(root / "devkit/cars_meta.mat")["class_names"]))
    return _read((files, [int(number) - 1 for number in rows["class"]], classes))


def _mat(path: Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DatasetError(f"{path} is read with SciPy: pip install 'tinytrain-lite[data]'") from error
    try:
        return loadmat(path, squeeze_me=True)
    except Exception as error:  # SciPy raises many kinds for a damaged file
        raise DatasetError(f"{path} is missing or damaged: {error}") from error


def _pets(root: Path, part: str) -> Labelled:
    rows = _table(root / "annotations" / ("trainval.txt" if part == "train" else "test.txt"), 4)
    titles = {int(number): name.rsplit("_", 1)[0] for name, number, *_ in rows}
    files = [root / "images" / f"{name}.jpg" for name, *_ in rows]
    return _read((files, [int(row[1]) - 1 for row in rows], tuple(titles[n] for n in sorted(titles))))


def _food(root: Path, part: str) -> Labelled:
    root = root / "food-101"
    classes = tuple(name for (name,) in _table(root / "meta/classes.txt", 1))
    names = [name for (name,) in _table(root / f"meta/{part}.txt", 1)]
    files = [root / "images" / f"{name}.jpg" for name in names]
    return _read((files, [classes.index(name.split("/")[0]) for name in names], classes))


def _cub(root: Path, part: str) -> Labelled:
    root = root / "CUB_200_2011"
    labels = dict(_table(root / "image_class_labels.txt", 2))
    wanted = {number for number, flag in _table(root / "train_test_split.txt", 2) if (flag == "1") == (part == "train")}
    rows = [(number, name) for number, name in _table(root / "images.txt", 2) if number in wanted]
    classes = tuple(name for _, name in _table(root / "classes.txt", 2))
    return _read(([root / "images" / name for _, name in rows], [int(labels[n]) - 1 for n, _ in rows], classes))


def _table(path: Path, columns: int) -> list[list[str]]:
    """Lines of words separated by blanks."""
    try:
        rows = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is missing or damaged: {error}") from error
    if not rows or any(len(row) != columns for row in rows):
        raise DatasetError(f"{path} is damaged: expected lines of {columns} words")
    return rows


def _vww(root: Path, part: str) -> Labelled:
    if part == "test":
        raise DatasetError("vww: MLPerf Tiny's archive has no test part; use split() to hold images out")
    return folder(root / "vw_coco2014_96", part)


READERS: dict[str, Callable[[Path, str], Labelled]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "flowers102": _flowers,
    "pets": _pets,
    "food101": _food,
    "cars": _cars,
    "cub200": _cub,
    "vww": _vww,
}
