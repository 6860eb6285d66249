"""A smaller training set: the first images of each class, for budgets that the whole set does not fit into."""

from __future__ import annotations

from pathlib import Path

from partialnet.data.folders import FolderImages


def first_of_each_class(data: str, count: int, folder: Path) -> str:
    """A folder of links to the first ``count`` training images of each class, and to the whole held-out part.

    Args:
        data: Folder with train and a held-out part inside, each with class folders.
        count: Images of each class; 0 takes all, which is ``data`` itself.
        folder: Where the links go; links that are there already are kept.

    Returns:
        The folder to train on.
    """
    if not count:
        return data
    root = Path(data).resolve()
    images = FolderImages(root / "train")
    taken = dict.fromkeys(images.class_names, 0)
    for index, label in enumerate(images.labels):
        class_name = images.class_names[label]
        if taken[class_name] < count:
            taken[class_name] += 1
            _link(folder / "train" / images.name(index), root / "train" / images.name(index))
    for part in root.iterdir():
        if part.is_dir() and part.name != "train":
            _link(folder / part.name, part)
    return str(folder)


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.symlink_to(target)


def count_images(data: str) -> int:
    """Training images in a folder with a part train."""
    return len(FolderImages(Path(data) / "train").labels)
