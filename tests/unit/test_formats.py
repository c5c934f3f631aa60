"""Every published data set is read from tiny archives in its authors' format; folders of pictures likewise."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tinytrain_lite.errors import DatasetError
from tinytrain_lite.train import datasets
from tinytrain_lite.train.formats import READERS
from tinytrain_lite.train.sources import SOURCES


def png(colour, size=(128, 128), mode="RGB", **options) -> bytes:
    """A picture of one colour; lossless whatever the file is called, as Pillow goes by the content."""
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "png", **options)
    return out.getvalue()


def red(level: int) -> bytes:
    return png((level, 0, 0))


def reds(data: datasets.Dataset) -> list[int]:
    assert data.images.shape[1:] == (128, 128, 3) and not data.images[..., 1:].any()
    return data.images[:, 64, 64, 0].tolist()


def text(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def mat(**arrays) -> bytes:
    out = io.BytesIO()
    savemat(out, arrays)
    return out.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as bundle:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            bundle.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Put files where a data set is looked for, and their checksums into the table."""

    def put(name: str, **contents: bytes | dict[str, bytes]) -> Path:
        files = []
        for file in SOURCES[name].files:
            content = contents[file.name.split(".")[0].replace("-", "_")]
            raw = tar(content) if isinstance(content, dict) else content
            (tmp_path / file.name).write_bytes(raw)
            files.append(dataclasses.replace(file, checksum=f"sha256:{hashlib.sha256(raw).hexdigest()}"))
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], files=tuple(files)))
        return tmp_path

    return put


class Python2:
    """Pickles as Python 2's cPickle wrote them: byte strings, and arrays by their raw bytes (opcodes: pickletools)."""

    @staticmethod
    def dumps(value) -> bytes:
        return b"\x80\x02" + Python2._of(value) + b"."

    @staticmethod
    def _of(value) -> bytes:
        if isinstance(value, str):
            return b"U" + bytes([len(value)]) + value.encode()
        if isinstance(value, int):
            return b"M" + value.to_bytes(2, "little")
        if isinstance(value, list):
            return b"](" + b"".join(map(Python2._of, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(Python2._of(item) for pair in value.items() for item in pair) + b"u"
        assert value.dtype == np.uint8 and value.ndim == 2
        shape = b"".join(map(Python2._of, value.shape)) + b"\x86"
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        raw = value.tobytes()
        return (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            b"(K\x01" + shape + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
        )


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def pixel(row: np.ndarray, y: int, x: int) -> list[int]:
    return [int(row[1024 * channel + 32 * y + x]) for channel in range(3)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:dtype")
def test_the_pickles_of_these_tests_are_what_numpy_reads():
    batch = {"data": rows(2, 0), "labels": [1, 300]}
    read = pickle.loads(Python2.dumps(batch), encoding="latin1")
    assert np.array_equal(read["data"], batch["data"]) and read["labels"] == [1, 300]


def test_cifar10(publish):
    folder, batches = "cifar-10-batches-py", [rows(2, seed) for seed in range(6)]
    members = {
        f"{folder}/data_batch_{i}": Python2.dumps({"batch_label": "x", "labels": [i, 0], "data": batches[i - 1]})
        for i in range(1, 6)
    }
    members[f"{folder}/test_batch"] = Python2.dumps({"labels": [9, 8], "data": batches[5], "filenames": ["a", "b"]})
    members[f"{folder}/batches.meta"] = Python2.dumps({"label_names": list("abcdefghij"), "num_vis": 3072})
    root = publish("cifar10", cifar_10_python=members)
    data = datasets.load("cifar10", "train", root)
    assert data.images.shape == (10, 32, 32, 3) and data.classes == tuple("abcdefghij")
    assert data.labels.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert data.images[7, 30, 2].tolist() == pixel(batches[3][1], 30, 2)
    test = datasets.load("cifar10", "test", root)
    assert test.labels.tolist() == [9, 8] and test.images[0, 0, 31].tolist() == pixel(batches[5][0], 0, 31)


def test_cifar100_has_fine_classes(publish):
    titles = [f"fine{i}" for i in range(100)]
    members = {
        f"cifar-100-python/{part}": Python2.dumps({"fine_labels": [99, 3], "coarse_labels": [1, 2], "data": rows(2, i)})
        for i, part in enumerate(("train", "test"))
    }
    meta = Python2.dumps({"fine_label_names": titles, "coarse_label_names": ["x"]})
    root = publish("cifar100", cifar_100_python={**members, "cifar-100-python/meta": meta})
    data = datasets.load("cifar100", "test", root)
    assert [data.classes[i] for i in data.labels] == ["fine99", "fine3"]
    assert data.images[1, 5, 6].tolist() == pixel(rows(2, 1)[1], 5, 6)


@pytest.mark.parametrize(
    "batch",
    [b"garbage", Python2.dumps({"labels": [1]}), Python2.dumps([1])],
    ids=["garbage", "no data", "no dict"],
)
def test_a_cifar_file_that_is_no_such_pickle_is_refused(publish, batch):
    root = publish("cifar10", cifar_10_python={"cifar-10-batches-py/test_batch": batch})
    with pytest.raises(DatasetError, match="test_batch: not a CIFAR file that can be read safely"):
        datasets.load("cifar10", "test", root)


def test_a_cifar_file_cannot_call_anything(publish, tmp_path):
    called = tmp_path / "called"
    batch = f"cos\nmkdir\n(S'{called}'\ntR.".encode()
    root = publish("cifar10", cifar_10_python={"cifar-10-batches-py/test_batch": batch})
    with pytest.raises(DatasetError, match=r"it asks for os\.mkdir"):
        datasets.load("cifar10", "test", root)
    assert not called.exists()


def test_flowers(publish):
    root = publish(
        "flowers102",
        **{"102flowers": {f"jpg/image_{n:05d}.jpg": red(10 * n) for n in range(1, 6)}},
        imagelabels=mat(labels=np.array([[102, 7, 7, 1, 2]], np.uint8)),
        setid=mat(trnid=np.array([[5, 1]], np.uint16), valid=np.array([[4]]), tstid=np.array([[2, 3]])),
    )
    train, test = (datasets.load("flowers102", part, root) for part in ("train", "test"))
    assert reds(train) == [50, 10, 40] and [train.classes[i] for i in train.labels] == ["2", "102", "1"]
    assert reds(test) == [20, 30] and test.labels.tolist() == [6, 6] and len(test.classes) == 102


def test_pets(publish):
    root = publish(
        "pets",
        images={f"images/{name}.jpg": red(n) for n, name in enumerate(("great_dane_1", "Bengal_7", "Bengal_8"), 1)},
        annotations={
            "annotations/trainval.txt": text("great_dane_1 2 2 1", "Bengal_7 1 1 1"),
            "annotations/test.txt": text("Bengal_8 1 1 1"),
        },
    )
    train = datasets.load("pets", "train", root)
    assert reds(train) == [1, 2] and [train.classes[i] for i in train.labels] == ["great_dane", "Bengal"]
    assert reds(datasets.load("pets", "test", root)) == [3]


def test_food(publish):
    members = {f"food-101/images/{name}.jpg": red(n) for n, name in enumerate(("pie/1", "soup/2", "soup/3"), 1)}
    members["food-101/meta/classes.txt"] = text("pie", "soup")
    members["food-101/meta/train.txt"] = text("soup/3", "pie/1")
    members["food-101/meta/test.txt"] = text("soup/2")
    root = publish("food101", food_101=members)
    train, test = (datasets.load("food101", part, root) for part in ("train", "test"))
    assert reds(train) == [3, 1] and train.labels.tolist() == [1, 0] and train.classes == ("pie", "soup")
    assert reds(test) == [2] and test.labels.tolist() == [1]


def annotated(*entries: tuple[str, int]) -> bytes:
    fields = [("bbox_x1", object), ("class", object), ("fname", object)]
    return mat(annotations=np.array([[(1, number, name) for name, number in entries]], fields))


def test_cars(publish):
    root = publish(
        "cars",
        car_devkit={
            "devkit/cars_meta.mat": mat(class_names=np.array([["Audi A", "BMW B", "Ford C"]], object)),
            "devkit/cars_train_annos.mat": annotated(("00002.jpg", 3), ("00001.jpg", 1)),
        },
        cars_train={"cars_train/00001.jpg": red(1), "cars_train/00002.jpg": red(2)},
        cars_test={"cars_test/00001.jpg": red(9)},
        cars_test_annos_withlabels=annotated(("00001.jpg", 2)),
    )
    train, test = (datasets.load("cars", part, root) for part in ("train", "test"))
    assert reds(train) == [2, 1] and [train.classes[i] for i in train.labels] == ["Ford C", "Audi A"]
    assert reds(test) == [9] and test.labels.tolist() == [1] and len(test.classes) == 3


def test_birds(publish):
    names = ("001.Auk/a.jpg", "002.Jay/b.jpg", "002.Jay/c.jpg")
    members = {f"CUB_200_2011/images/{name}": red(n) for n, name in enumerate(names, 1)}
    members["CUB_200_2011/images.txt"] = text(*(f"{n} {name}" for n, name in enumerate(names, 1)))
    members["CUB_200_2011/image_class_labels.txt"] = text("1 1", "2 2", "3 2")
    members["CUB_200_2011/train_test_split.txt"] = text("1 1", "2 0", "3 1")
    members["CUB_200_2011/classes.txt"] = text("1 001.Auk", "2 002.Jay")
    root = publish("cub200", CUB_200_2011={"attributes.txt": b"1 bill", **members})
    train, test = (datasets.load("cub200", part, root) for part in ("train", "test"))
    assert reds(train) == [1, 3] and train.labels.tolist() == [0, 1] and train.classes == ("001.Auk", "002.Jay")
    assert reds(test) == [2] and test.labels.tolist() == [1]


def test_visual_wake_words(publish):
    root = publish(
        "vww",
        vw_coco2014_96={
            "vw_coco2014_96/person/2.jpg": png("white", (96, 96)),
            "vw_coco2014_96/non_person/1.jpg": png("black", (96, 96)),
        },
    )
    data = datasets.load("vww", "train", root)
    assert data.classes == ("non_person", "person") and data.labels.tolist() == [0, 1]
    assert data.images.shape == (2, 96, 96, 3) and data.images[:, 0, 0, 0].tolist() == [0, 255]
    with pytest.raises(DatasetError, match="no test part"):
        datasets.load("vww", "test", root)


def test_there_is_a_reader_for_every_source():
    assert READERS.keys() == SOURCES.keys() and set(SOURCES) < set(datasets.names())


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("meta/train.txt", text("cake/1"), "contradict each other"),
        ("meta/train.txt", text("two words"), "train.txt is damaged: expected lines of 1 words"),
        ("meta/train.txt", b"\xff\xfe", "train.txt is missing or damaged"),
        ("meta/train.txt", text("pie/2"), r"2\.jpg is missing"),
        ("images/pie/1.jpg", b"no picture", r"1\.jpg is not a picture that can be read"),
        ("images/pie/1.jpg", red(1)[:100], r"1\.jpg is not a picture that can be read"),
    ],
)
def test_damaged_contents_are_named(publish, member, content, message):
    members = {"meta/classes.txt": text("pie"), "meta/train.txt": text("pie/1"), "images/pie/1.jpg": red(1)}
    root = publish("food101", food_101={f"food-101/{k}": v for k, v in {**members, member: content}.items()})
    with pytest.raises(DatasetError, match=message):
        datasets.load("food101", "train", root)


def test_a_damaged_mat_file_is_named(publish):
    root = publish("flowers102", **{"102flowers": {"jpg/image_00001.jpg": red(1)}}, imagelabels=b"", setid=b"no mat")
    with pytest.raises(DatasetError, match=r"setid\.mat is missing or damaged"):
        datasets.load("flowers102", "train", root)


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_folder_sorts_classes_and_files_and_skips_what_is_no_picture(tmp_path):
    files = {"dog/b.PNG": red(3), "dog/a.png": red(2), "cat/z.jpg": red(1)}
    put(tmp_path, {**files, "cat/notes.txt": b"", "cat/._z.jpg": b"", ".cache/x.png": b"", "readme.md": b""})
    data = datasets.load("folder", "train", tmp_path)
    assert reds(data) == [1, 2, 3] and data.labels.tolist() == [0, 1, 1] and data.classes == ("cat", "dog")


def test_folder_with_two_parts_has_one_numbering(tmp_path):
    put(tmp_path, {"train/a/1.png": red(1), "train/b/1.png": red(2), "test/b/1.png": red(3)})
    data = datasets.load("folder", "test", tmp_path)
    assert reds(data) == [3] and data.labels.tolist() == [1] and data.classes == ("a", "b")
    assert reds(datasets.load("folder", "train", tmp_path)) == [1, 2]
    put(tmp_path, {"test/c/1.png": red(3)})
    with pytest.raises(DatasetError, match="no class 'c' among the training images"):
        datasets.load("folder", "test", tmp_path)


@pytest.mark.parametrize(
    ("files", "part", "message"),
    [
        ({"a/1.png": red(1)}, "test", "no folders train and test"),
        ({"1.png": red(1)}, "train", "no sub-folders"),
        ({"a/1.png": red(1), "b/notes.txt": b""}, "train", "b holds no pictures"),
        ({"train/a/1.png": red(1)}, "test", "test: no such folder"),
    ],
)
def test_folder_errors(tmp_path, files, part, message):
    with pytest.raises(DatasetError, match=message):
        datasets.load("folder", part, put(tmp_path, files))


def test_folder_needs_a_path_that_exists(tmp_path):
    with pytest.raises(DatasetError, match="folder: no path given"):
        datasets.load("folder")
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        datasets.load("folder", "train", tmp_path / "nowhere")


def test_pictures_of_one_small_square_size_stay_as_they_are(tmp_path):
    exact = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(exact).save(tmp_path / "a" / "1.png")
    assert np.array_equal(datasets.load("folder", "train", tmp_path).images[0], exact)


def test_pictures_of_several_sizes_are_scaled_and_cropped_to_the_centre(tmp_path):
    wide = np.zeros((256, 768, 3), np.uint8)
    wide[:, 256:512] = (200, 100, 50)  # exactly the centre square
    put(tmp_path, {"a/1.png": red(7), "a/2.png": b""})
    Image.fromarray(wide).save(tmp_path / "a" / "2.png")
    first, second = datasets.load("folder", "train", tmp_path).images
    assert np.all(first == (7, 0, 0))
    assert second.shape == (128, 128, 3) and np.all(second[:, 1:-1] == (200, 100, 50))


def test_small_squares_of_two_sizes_are_brought_to_one(tmp_path):
    put(tmp_path, {"a/1.png": png((7, 0, 0), (32, 32)), "a/2.png": png((8, 0, 0), (64, 64))})
    assert reds(datasets.load("folder", "train", tmp_path)) == [7, 8]


def test_grey_pictures_have_one_channel_unless_another_has_colour(tmp_path):
    put(tmp_path, {"a/1.png": png(9, (4, 4), "L")})
    assert datasets.load("folder", "train", tmp_path).images.shape == (1, 4, 4, 1)
    put(tmp_path, {"a/2.png": png((1, 2, 3), (4, 4))})
    assert datasets.load("folder", "train", tmp_path).images[:, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]


def test_pictures_are_turned_as_their_camera_says(tmp_path):
    upright = np.zeros((4, 4, 3), np.uint8)
    upright[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # Exif 2.3, 4.6.4 A: row 0 is the right side, column 0 the top: turn clockwise to see it
    (tmp_path / "a").mkdir()
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a" / "1.png", exif=exif)
    assert np.array_equal(datasets.load("folder", "train", tmp_path).images[0], upright)


def test_the_command_line_names_the_files_to_get_and_exits_with_2(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens on the discard port
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    options = ["run", "demo", "--scheme", "bias", "--data", "flowers102", "--data-path", str(tmp_path)]
    script = "from tinytrain_lite.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script, *options], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    for file in SOURCES["flowers102"].files:
        assert f"{file.url}\n    as {tmp_path / file.name} ({file.checksum})" in done.stderr
