"""Published data sets: where their files lie, how to know them, and on which terms they are given.

Checksums are those that torchvision's data sets check (CIFAR, Flowers, Pets, Food, Cars), that the CUB loaders in
use check, and that Silicon Labs, who serve Visual Wake Words, check in their own ML toolkit (MLTK).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SOURCES", "RemoteFile", "Source"]


@dataclass(frozen=True)
class RemoteFile:
    """One file to download.

    url: its address; the file keeps the last part of it as its name.
    checksum: "md5:..." or "sha1:...", in hexadecimal.
    holds: the folder that the archive unpacks to; None for a file that is used as it is.
    part: "train" or "test" if the other part does without it.
    """

    url: str
    checksum: str
    holds: str | None = None
    part: str | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Source:
    """A data set: its page, the terms of its use as far as we know them (the page decides), and its files."""

    title: str
    page: str
    terms: str
    files: tuple[RemoteFile, ...]


_CIFAR = "https://www.cs.toronto.edu/~kriz"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_CARS = "https://ai.stanford.edu/~jkrause"
_CITE = "no licence stated; the authors ask to be cited"

SOURCES: dict[str, Source] = {
    "cifar10": Source(
        "CIFAR-10",
        f"{_CIFAR}/cifar.html",
        _CITE,
        (
            RemoteFile(
                f"{_CIFAR}/cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"
            ),
        ),
    ),
    "cifar100": Source(
        "CIFAR-100",
        f"{_CIFAR}/cifar.html",
        _CITE,
        (RemoteFile(f"{_CIFAR}/cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"),),
    ),
    "flowers102": Source(
        "Oxford 102 Flowers",
        f"{_VGG}/flowers/102/",
        "no licence known to us; see the page",
        (
            RemoteFile(f"{_VGG}/flowers/102/102flowers.tgz", "md5:52808999861908f626f3c1f4e79d11fa", "jpg"),
            RemoteFile(f"{_VGG}/flowers/102/imagelabels.mat", "md5:e0620be6f572b9609742df49c70aed4d"),
            RemoteFile(f"{_VGG}/flowers/102/setid.mat", "md5:a5357ecc9cb78c4bef273ce3793fc85c"),
        ),
    ),
    "pets": Source(
        "Oxford-IIIT Pets",
        f"{_VGG}/pets/",
        "CC BY-SA 4.0; the photographs remain their owners'",
        (
            RemoteFile(f"{_VGG}/pets/data/images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c", "images"),
            RemoteFile(f"{_VGG}/pets/data/annotations.tar.gz", "md5:95a8c909bbe2e81eed6a22bccdf3f68f", "annotations"),
        ),
    ),
    "food101": Source(
        "Food-101",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "scientific fair use; the photographs are Foodspotting's and their owners'",
        (
            RemoteFile(
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "md5:85eeb15f3717b99a5da872d97d918f87", "food-101"
            ),
        ),
    ),
    "cars": Source(
        "Stanford Cars",
        f"{_CARS}/cars/car_dataset.html",
        "no licence known to us. The authors' server no longer answers: get the files elsewhere, checksums decide",
        (
            RemoteFile(f"{_CARS}/cars/car_devkit.tgz", "md5:c3b158d763b6e2245038c8ad08e45376", "devkit"),
            RemoteFile(
                f"{_CARS}/car196/cars_train.tgz", "md5:065e5b463ae28d29e77c1b4b166cfe61", "cars_train", part="train"
            ),
            RemoteFile(
                f"{_CARS}/car196/cars_test.tgz", "md5:4ce7ebf6a94d07f1952d94dd34c4d501", "cars_test", part="test"
            ),
            RemoteFile(
                f"{_CARS}/car196/cars_test_annos_withlabels.mat", "md5:b0a2b23655a3edd16d84508592a98d10", part="test"
            ),
        ),
    ),
    "cub200": Source(
        "Caltech-UCSD Birds-200-2011",
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "non-commercial research and education only",
        (
            RemoteFile(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                "md5:97eceeb196236b17998738112f37df78",
                "CUB_200_2011",
            ),
        ),
    ),
    "vww": Source(
        "Visual Wake Words, 96x96, as in MLPerf Tiny",
        "https://github.com/mlcommons/tiny",
        "made from COCO 2014: annotations CC BY 4.0, the photographs on the terms of Flickr",
        (
            RemoteFile(
                "https://www.silabs.com/public/files/github/machine_learning/benchmarks/datasets/vw_coco2014_96.tar.gz",
                "sha1:a5a465082d3f396407f8b5abaf824dd5b28439c4",
                "vw_coco2014_96",
            ),
        ),
    ),
}
