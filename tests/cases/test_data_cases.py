"""What users' image folders and Parquet files look like, from public reports: which files are which split and class,
what an image is, what Parquet holds. A case of a report has its number in the test's id, others are of the same kinds.

Each builds a small dataset in `root`; what training says and what `data check` says must be the same.
"""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from resnet_ops.config import DataConfig
from resnet_ops.data import listing
from resnet_ops.data.audit import check_data
from resnet_ops.data.dataset import Split
from resnet_ops.data.image_kinds import describe_content, image_extensions
from resnet_ops.data.image_sizes import HEADERS_READ
from resnet_ops.data.opening import open_source
from resnet_ops.data.sources import Source, cut_note
from resnet_ops.data.stream import StreamedImages
from resnet_ops.errors import UserError
from tests.data.samples import encode_pixels

Build = Callable[[Path], object]
RANDOM = np.random.default_rng(0)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(kind: str = "PNG", side: int = 8, **options: object) -> bytes:
    return encode_pixels(RANDOM.integers(0, 256, (side, side, 3), np.uint8), kind, **options)


def folders(root: Path, names: str, count: int = 10, extension: str = ".png", kind: str = "PNG") -> None:
    """Write images into folders with these names; '.' is `root` itself."""
    for name in names.split():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / name / f"{number}{extension}").write_bytes(picture(kind))


def text(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def parquet(file: Path, labels: object, images: pa.Array | None = None, names: list[str] | None = None) -> None:
    array = labels if isinstance(labels, pa.Array) else pa.array(labels)
    if images is None:
        images = pa.array([{"bytes": picture(), "path": None} for _ in range(len(array))], IMAGE)
    table = pa.table({"image": images, "label": array})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def prepared(root: Path | str, cache: Path, **options: object) -> Source:
    """Open and decode the data, and hold what `data check` says of it against what training does."""
    config = DataConfig.of(data=str(root), cache_dir=cache, **options)
    source = open_source(config).prepare()
    report, record = check_data(config), source.record
    assert report.images == (record.train_images, record.val_images, record.test_images)
    assert report.class_names == record.class_names
    assert not report.refused
    return source


def told(source: Source) -> str:
    return "\n".join((*source.summary, *source.notes))


def counts(source: Source) -> tuple[int, int, int]:
    return source.record.train_images, source.record.val_images, source.record.test_images


def splits(*names: str) -> Build:
    """Two classes of 10 images in each of these folders."""
    return lambda root: [folders(root / name, "cat dog") for name in names]


def all_of(*builds: Build) -> Build:
    return lambda root: [build(root) for build in builds]


def images(names: str, count: int = 10, extension: str = ".png", kind: str = "PNG") -> Build:
    return lambda root: folders(root, names, count, extension, kind)


def stereo(names: str) -> Build:
    """Class folders of JPEGs with a second picture in each, as drones and stereo cameras write them."""
    second = Image.new("RGB", (8, 8))

    def write(root: Path) -> None:
        images(names)(root)
        for png in root.rglob("*.png"):
            png.rename(png.with_suffix(".jpg")).write_bytes(picture("MPO", save_all=True, append_images=[second]))

    return write


def file(name: str, content: str) -> Build:
    return lambda root: text(root / name, content)


def link(name: str, target: str) -> Build:
    return lambda root: (root / name).symlink_to(target)


def table(name: str, labels: object, names: list[str] | None = None) -> Build:
    return lambda root: parquet(root / name, labels, names=names)


def named(names: str, extension: str, kind: str, count: int = 10, **options: object) -> Build:
    """Class folders of images that are saved with options, each of other pixels."""

    def write(root: Path) -> None:
        for name in names.split():
            (root / name).mkdir(parents=True)
            for number in range(count):
                (root / name / f"{number}{extension}").write_bytes(picture(kind, **options))

    return write


def saved(image: Image.Image) -> Build:
    """Two classes of five TIFFs, all of them this image."""

    def write(root: Path) -> None:
        folders(root, "cat dog", 0)
        for number in range(10):
            image.save(root / ("cat", "dog")[number % 2] / f"{number}.tif")

    return write


def columns(name: str, **content: object) -> Build:
    """A Parquet file of 20 images with these columns beside the images."""

    def write(root: Path) -> None:
        images = pa.array([{"bytes": picture(), "path": None} for _ in range(20)], IMAGE)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"Image": images, **content}), root / name)

    return write


def raw(name: str, content: bytes) -> Build:
    def write(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return write


def lines(of_each: str, count: int = 20) -> str:
    """A line per image; `N` is its number, `C` its class, `A` and `B` are 1 of a cat and of a dog, `S` is its split."""
    return "".join(
        of_each.replace("N", str(n)).replace("C", ("cat", "dog")[n % 2]).replace("A", str(1 - n % 2))
        .replace("B", str(n % 2)).replace("S", "test" if n >= 14 else "train")
        for n in range(count)
    )  # fmt: skip


FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}
LABELS = "".join(f"{number}.png,{('cat', 'dog')[number % 2]}\n" for number in range(20))
KAGGLE = "id,breed\n" + "".join(f"{number},{('pug', 'husky')[number % 2]}\n" for number in range(20))
JSON_LINES = "\n".join(json.dumps({"file_name": f"{n}.png", "label": ["a", "b"][n % 2]}) for n in range(20))

# What is built, and: classes, images of each split, words that are told.
READ: dict[str, tuple[Build, str, tuple[int, int, int], str]] = {
    "C01-train-test": (splits("Train", "Test"), "cat dog", (18, 2, 20), ""),
    "C01-training-testing": (splits("Training", "Testing"), "cat dog", (18, 2, 20), ""),
    "C01-train_set-test_set": (splits("train_set", "test_set"), "cat dog", (18, 2, 20), ""),
    "pets_train-pets_val": (splits("pets_train", "pets_val"), "cat dog", (20, 20, 0), ""),
    "TrainImages-ValImages": (splits("TrainImages", "ValImages"), "cat dog", (20, 20, 0), ""),
    "TRAIN-DEV-EVAL": (splits("TRAIN", "DEV", "EVAL"), "cat dog", (20, 20, 20), ""),
    "01-train-02-valid": (splits("01-train", "02-valid"), "cat dog", (20, 20, 0), ""),
    "two-train-folders": (splits("train_1", "train_2", "val"), "cat dog", (40, 20, 0), ""),
    "val-and-test": (splits("train", "val", "test"), "cat dog", (20, 20, 20), ""),
    "val-beside-dev": (splits("train", "val", "dev"), "cat dog", (20, 20, 0), "20 in dev/, beside another folder"),
    "hive-folders": (splits("split=train", "split=validation"), "cat dog", (20, 20, 0), ""),
    "archive-in-archive": (splits("pets/pets"), "cat dog", (16, 4, 0), ""),
    "splits-below": (splits("images/train", "images/val"), "cat dog", (20, 20, 0), ""),
    "readme-picture": (all_of(images("cat dog"), images(".", 2)), "cat dog", (16, 4, 0), "2 outside class folders"),
    "C02": (all_of(splits("train"), images("val", 20)), "cat dog", (16, 4, 0), "val/ holds 20 images, but no class"),
    "flat-test": (all_of(splits("train"), images("test", 9)), "cat dog", (16, 4, 0), "9 in test/, which has no class"),
    "C12": (all_of(images("cat dog"), link("cat/again", ".")), "cat dog", (16, 4, 0), "the same folder as cat/"),
    "link-to-root": (all_of(images("cat dog"), link("cat/up", "../..")), "cat dog", (16, 4, 0), "the same folder"),
    "links-to-each-other": (
        all_of(images("cat dog"), link("cat/x", "../dog"), link("dog/x", "../cat")),
        "cat dog", (16, 4, 0), "the same folder as dog/",
    ),
    "C47": (
        all_of(lambda root: folders(root.parent / "pool", "cat dog v/cat v/dog"), lambda root: (root / "train").mkdir(),
               link("train/cat", "../../pool/cat"), link("train/dog", "../../pool/dog"), link("val", "../pool/v")),
        "cat dog", (20, 20, 0), "",
    ),
    "C44": (stereo("cat dog"), "cat dog", (16, 4, 0), ""),
    "class-of-two-names": (all_of(images("cat dog"), link("kitty", "cat")), "cat dog", (16, 4, 0), "as cat/"),
    "links-to-a-pool-below": (
        all_of(images("pool/cat pool/dog"), lambda root: (root / "train").mkdir(),
               link("train/cat", "../pool/cat"), link("train/dog", "../pool/dog")),
        "cat dog", (16, 4, 0), "the same folder as train/cat/",
    ),
    "C31": (images("bus car train"), "bus car train", (24, 6, 0), ""),
    "C31-val": (images("bus car eval test"), "bus car eval test", (32, 8, 0), ""),
    "C43-metadata": (all_of(images(".", 20), file("metadata.csv", "file_name,label\n" + LABELS)),
                     "cat dog", (16, 4, 0), ""),
    "C43-images-below": (all_of(images("images", 20),
                                file("labels.csv", "\ufefffile;class\n" + LABELS.replace(",", ";"))),
                         "cat dog", (16, 4, 0), ""),
    "C43-kaggle": (
        all_of(images("train", 20), images("test", 9), file("train.csv", KAGGLE), file("test.csv", "id\n0\n1\n")),
        "husky pug", (16, 4, 0), "test/ holds 9 images",
    ),
    "a-table-of-train": (
        all_of(images("train val", 20), file("labels.csv", "id,label\n" + lines("train/N,C\n"))),
        "cat dog", (16, 4, 0), "val/ holds 20 images, but no class folders, and no table labels them",
    ),
    "ids-of-train-and-test": (
        all_of(images("train", 20), images("test", 9), file("labels.csv", "id,label\n" + lines("N,C\n"))),
        "cat dog", (16, 4, 0), "9 names of files that are in several folders, first 0: train/0.png, test/0.png",
    ),
    "sample-submission": (
        all_of(images("train", 20), images("test", 9), file("labels.csv", "id,label\n" + lines("N,C\n")),
               file("a_sample_submission.csv", "id,label\n" + lines("N,0\n", 9))),
        "cat dog", (16, 4, 0), "test/ holds 9 images",
    ),
    "json-lines-of-train-and-null": (
        all_of(images("train val", 21), file("a.jsonl", lines('{"file_name": "train/N.png", "label": "C"}\n')
                                             + '{"file_name": "train/20.png", "label": null}')),
        "cat dog", (16, 4, 0), "val/ holds 21 images",
    ),
    "C43-jsonl": (all_of(images("train val", 20), file("train/metadata.jsonl", JSON_LINES),
                         file("val/metadata.jsonl", JSON_LINES)), "a b", (20, 20, 0), ""),
    "C43-unlabeled": (all_of(images(".", 24), file("a.csv", "name,label\n" + LABELS)),
                      "cat dog", (16, 4, 0), "4 without a label in the table"),
    "labels-by-number": (all_of(images(".", 44),
                                file("a.tsv", "img\ty\n" + "".join(f"{n}\t{n % 11}\n" for n in range(44)))),
                         " ".join(map(str, range(11))), (33, 11, 0), ""),
    "C45": (
        all_of(images("cat dog"), file(".ipynb_checkpoints/x.png", ""), file("__MACOSX/cat/._1.png", ""),
               file(".DS_Store", ""), file("cat/Thumbs.db", ""), file("cat/._1.png", "")),
        "cat dog", (16, 4, 0), "5 hidden or of the system",
    ),
    "C45-empty": (all_of(images("cat dog"), lambda root: (root / "__MACOSX" / "cat").mkdir(parents=True)),
                  "cat dog", (16, 4, 0), ""),
    "thumbnails": (all_of(images("cat dog"), images("cat/@eaDir dog/thumbnails")), "cat dog", (16, 4, 0), "2 hidden"),
    "pipe": (all_of(images("cat dog"), lambda root: os.mkfifo(root / "cat" / "x.png")), "cat dog", (16, 4, 0),
             "1 no regular file"),
    "other-files": (all_of(images("cat dog"), file("cat/a.txt", ""), file("dog/b.CR2", ""), file("dog/c", "")),
                    "cat dog", (16, 4, 0), "1 .cr2, 1 without an extension"),
    "C07": (all_of(table("default/train/0000.parquet", [0, 1] * 10), table("default/test/0000.parquet", [0, 1] * 5)),
            "0 1", (18, 2, 10), ""),
    "C07-hive": (table("split=train/p.parquet", [0, 1] * 10), "0 1", (16, 4, 0), ""),
    "C07-hive-both": (all_of(table("split=train/p.parquet", [0, 1] * 10), table("split=test/p.parquet", [0, 1] * 5)),
                      "0 1", (18, 2, 10), ""),
    "C07-data": (all_of(table("data/train-0.parquet", [0, 1] * 10), table("data/validation-0.parquet", [0, 1] * 5),
                        file("README.md", "")), "0 1", (20, 10, 0), "1 .md"),
    "C08": (table("a.parquet", [1, 2, 3] * 10), "1 2 3", (24, 6, 0),
            "3 classes of C08 are the values of its labels: 1, 2"),
    "C08-ids": (table("a.parquet", [7, 3_000_000] * 10), "7 3000000", (16, 4, 0), "7, 3000000"),
    "C08-unlabeled-test": (all_of(table("train-0.parquet", [0, 1] * 10), table("test-0.parquet", [-1] * 6)),
                           "0 1", (16, 4, 0), "Left out 6 images of the test split"),
    "null-test": (all_of(table("train-0.parquet", [0, 1] * 10), table("test-0.parquet", pa.nulls(6))),
                  "0 1", (16, 4, 0), "Left out 6 images of the test split"),
    "test-without-column": (
        all_of(table("train-0.parquet", [0, 1] * 10),
               lambda root: pq.write_table(pa.table({"image": [{"bytes": b"x"}]}), root / "test-0.parquet")),
        "0 1", (16, 4, 0), "The test split is left out",
    ),
    "names-in-val-and-test": (
        all_of(table("train-0.parquet", [0, 1] * 10), table("val-0.parquet", [1, 0] * 5, ["dog", "cat"]),
               table("test-0.parquet", [1, 0] * 3, ["dog", "cat"])),
        "dog cat", (20, 10, 6), "names are those of the validation split: 0 is dog, 1 is cat",
    ),
    "names-in-test": (
        all_of(table("train-0.parquet", [0, 1] * 10), table("test-0.parquet", [1, 0] * 3, ["dog", "cat"])),
        "dog cat", (18, 2, 6), "names are those of the test split: 0 is dog, 1 is cat",
    ),
    "ids-in-both-splits": (all_of(table("train-0.parquet", [5, 9] * 10), table("val-0.parquet", [9, 5] * 5)),
                           "5 9", (20, 10, 0), ""),
    "C33-text": (table("a.parquet", ["dog", "cat"] * 10), "cat dog", (16, 4, 0), ""),
    "C33-categories": (table("a.parquet", pa.array(["dog", "cat"] * 10).dictionary_encode()),
                       "cat dog", (16, 4, 0), ""),
    "C33-bytes": (lambda root: parquet(root / "a.parquet", [0, 1] * 10, pa.array([picture() for _ in range(20)])),
                  "0 1", (16, 4, 0), ""),
    "C33-large-bytes": (
        lambda root: parquet(root / "a.parquet", [0, 1] * 10,
                             pa.array([picture() for _ in range(20)], pa.large_binary())),
        "0 1", (16, 4, 0), "",
    ),
    "booleans": (table("a.parquet", [True, False] * 10), "false true", (16, 4, 0), ""),
    "floats": (table("a.parquet", [0.0, 1.0] * 10), "0 1", (16, 4, 0), ""),
    "unsigned": (table("a.parquet", pa.array([0, 1] * 10, pa.uint8())), "0 1", (16, 4, 0), ""),
    "unused-category": (
        table("a.parquet", pa.DictionaryArray.from_arrays([0, 2] * 10, ["cat", "cow", "dog"])),
        "cat dog", (16, 4, 0), "",
    ),
    "paths": (
        all_of(images("img", 20), lambda root: parquet(
            root / "a.parquet", [0, 1] * 10, pa.array([f"img/{number}.png" for number in range(20)]))),
        "0 1", (16, 4, 0), "20 beside a.parquet, which is Parquet and read",
    ),
    "struct-paths": (
        all_of(images("img", 20), lambda root: parquet(root / "a.parquet", [0, 1] * 10, pa.array(
            [{"bytes": None, "path": str(root / f"img/{number}.png")} for number in range(20)], IMAGE))),
        "0 1", (16, 4, 0), "",
    ),
    "text-shards": (all_of(table("a.parquet", ["dog", "cat"] * 5), table("b.parquet", ["dog", "ant"] * 5)),
                    "ant cat dog", (16, 4, 0), ""),
    "text-beside-names": (all_of(table("a.parquet", [0, 1] * 5, ["dog", "cat"]),
                                 table("b.parquet", ["cat", "dog"] * 5)),
                          "dog cat", (16, 4, 0), ""),
    "C10-jfif": (all_of(images("cat dog"), images("cat", 30, ".jfif", "JPEG")), "cat dog", (40, 10, 0), ""),
    "C10-avif": (images("cat dog", 10, ".avif", "AVIF"), "cat dog", (16, 4, 0), ""),
    "C10-jp2": (images("cat dog", 10, ".JP2", "JPEG2000"), "cat dog", (16, 4, 0), ""),
    "C10-others": (all_of(images("cat dog", 5, ".tga", "TGA"), images("cat dog", 5, ".jpe", "JPEG"),
                          images("cat dog", 5, ".apng"), images("cat dog", 5, ".qoi", "QOI")),
                   "cat dog", (32, 8, 0), ""),
    # Of forums: Kaggle, Roboflow, Label Studio, ImageNet, Excel and Windows.
    "Train-Valid-TEST": (splits("Train", "Valid", "TEST"), "cat dog", (20, 20, 20), ""),
    "intel-seg_train-seg_train": (
        all_of(splits("seg_train/seg_train", "seg_test/seg_test"), images("seg_pred/seg_pred", 7)),
        "cat dog", (18, 2, 20), "7 outside the splits",
    ),
    "roboflow-one-hot": (
        all_of(images("train valid", 20), file("train/_classes.csv", "filename, cat, dog\n" + lines("N.png, A, B\n")),
               file("valid/_classes.csv", "filename, cat, dog\n" + lines("N.png, A, B\n"))),
        "cat dog", (20, 20, 0), "",
    ),
    "isic-one-hot": (all_of(images("images", 20), file("truth.csv", "image,MEL,NV\n" + lines("N,A.0,B.0\n"))),
                     "MEL NV", (16, 4, 0), ""),
    "windows-paths": (
        all_of(images("imgs", 20),
               raw("l.csv", ("path;label\r\n" + lines("D:\\data\\imgs\\N.png;C\r\n")).encode("utf-8-sig"))),
        "cat dog", (16, 4, 0), "",
    ),
    "excel-utf-16": (all_of(images(".", 20),
                     raw("l.csv", ("file\tlabel\r\n" + lines("N.png\tC\r\n")).encode("utf-16"))),
                     "cat dog", (16, 4, 0), ""),
    "excel-cp1252": (all_of(images(".", 20), raw("l.csv", ("file;label\r" + lines("N.png;Cé\r")).encode("cp1252"))),
                     "caté dogé", (16, 4, 0), ""),
    "pandas-index": (
        all_of(images(".", 20), file("l.csv", ",image,label\n" + "".join(
            f"{19 - n},{n}.png,{('cat', 'dog')[n % 2]}\n" for n in range(20)))),
        "cat dog", (16, 4, 0), "",
    ),
    "pandas-index-and-id": (
        all_of(images(".", 20), file("l.csv", "Unnamed: 0,id,label\n" + "".join(
            f"{19 - n},{n},{('cat', 'dog')[n % 2]}\n" for n in range(20)))),
        "cat dog", (16, 4, 0), "names images by its column 'id', not by 'Unnamed: 0'",
    ),
    "no-header": (all_of(images(".", 20), file("l.csv", lines("N.png,C\n"))), "cat dog", (16, 4, 0), ""),
    "list-of-caffe": (
        all_of(images("images", 20), file("train.txt", lines("images/N.png B\n"))),
        "0 1", (16, 4, 0), "",
    ),
    "label-studio": (
        all_of(images("images", 20),
               file("p.csv", "id,annotator,choice,image\n" + lines("7,1,C,/data/upload/1/N.png\n"))),
        "cat dog", (16, 4, 0), "",
    ),
    "column-of-splits": (all_of(images("images", 20),
                     file("l.csv", "filepath,label,split\n" + lines("images/N.png,C,S\n"))),
                         "cat dog", (12, 2, 6), ""),
    "column-of-splits-beside-one-folder": (
        all_of(images("train", 20), file("l.csv", "filepath,label,split\n" + lines("train/N.png,C,S\n"))),
        "cat dog", (12, 2, 6), "",
    ),
    "column-of-splits-beside-class-folders": (
        all_of(lambda root: [raw(f"{c}/{n}.png", picture())(root) for n in range(20) for c in [("cat", "dog")[n % 2]]],
               file("l.csv", "filepath,split\n" + lines("C/N.png,S\n"))),
        "cat dog", (12, 2, 6), "",
    ),
    "ids-told-apart-by-splits": (
        all_of(images("train", 14), images("test", 8),
               file("l.csv", "id,label,split\n" + lines("N,C,train\n", 14) + lines("N,C,test\n", 8))),
        "cat dog", (12, 2, 8), "",
    ),
    "column-of-other-sets": (all_of(images(".", 20), file("l.csv", "file,label,dataset\n" + lines("N.png,C,bC\n"))),
                             "cat dog", (16, 4, 0), ""),
    "rows-without-images": (all_of(images(".", 20), file("l.csv", "file,label\n" + LABELS + "gone.png,cow\n")),
                            "cat dog", (16, 4, 0), "names 1 image that cannot be found here, first gone.png"),
    "tiny-imagenet": (
        all_of(images("train/n0/images train/n1/images"), images("val/images", 10),
               file("val/val_annotations.txt", lines("N.png\tnB\t0\t0\t9\t9\n", 10)), file("wnids.txt", "n0\nn1\n")),
        "n0 n1", (20, 10, 0), "",
    ),
    "parts-and-a-table": (
        all_of(images("part_1 part_2"), lambda root: [(root / f"part_2/{n}.png").rename(root / f"part_2/b{n}.png")
                                                      for n in range(10)],
               file("l.csv", "image,label\n" + lines("N,C\n", 10) + lines("bN,C\n", 10))),
        "part_1 part_2", (16, 4, 0), "has other labels than the folders for 20 images",
    ),
    "blanks": (all_of(lambda root: folders(root / "train", "cat dog"), lambda root: folders(root / "val", "cat dog"),
                      lambda root: (root / "val/cat").rename(root / "val/cat ")), "cat dog", (20, 20, 0), ""),
    "two-levels": (all_of(images("data/cat data/dog"), images("docs/figures", 3)), "data docs", (18, 5, 0),
                   "Classes are the upper folders of data/cat, data/dog, docs/figures"),
    "test-beside-classes": (images("cat dog Test"), "Test cat dog", (24, 6, 0), "Test/ is a class, like cat, dog"),
    "links-to-files": (
        lambda root: [folders(root.parent, "farm", 20)] + [
            ((root / c).mkdir(exist_ok=True), (root / c / f"{n}.png").symlink_to(root.parent / f"farm/{n}.png"))
            for n in range(20) for c in [("cat", "dog")[n % 2]]],
        "cat dog", (16, 4, 0), "",
    ),
    "CMYK": (lambda root: [(folders(root, c, 0), [Image.fromarray(RANDOM.integers(0, 256, (8, 8, 4), np.uint8), "CMYK")
                                                 .save(root / c / f"{n}.jpg") for n in range(10)]) for c in ("a", "b")],
             "a b", (16, 4, 0), ""),
    "animated-gif": (named("cat dog", ".gif", "GIF", **FRAMES), "cat dog", (16, 4, 0), ""),
    "animated-webp": (named("cat dog", ".webp", "WEBP", **FRAMES), "cat dog", (16, 4, 0), ""),
    "two-pages": (named("cat dog", ".tiff", "TIFF", **FRAMES), "cat dog", (16, 4, 0), ""),
    "JPG.jpg": (named("cat dog", ".JPG.jpg", "JPEG"), "cat dog", (16, 4, 0), ""),
    "png-called-jpg": (named("cat dog", ".jpg", "PNG"), "cat dog", (16, 4, 0), ""),
    "decimals": (columns("a.parquet", Label=pa.array([0, 1] * 10).cast(pa.decimal128(25, 2))), "0 1", (16, 4, 0), ""),
    "text-with-blanks": (columns("a.parquet", label=["cat", "dog ", " cat", "dog"] * 5), "cat dog", (16, 4, 0), ""),
    "large-text": (
        columns("a.parquet", label=pa.array(["cat", "dog"] * 10, pa.large_string())),
        "cat dog", (16, 4, 0), "",
    ),
    "rows-of-splits": (
        columns("a.parquet", label=[0, 1] * 10, split=["train"] * 14 + ["test"] * 6),
        "0 1", (12, 2, 6), "",
    ),
    "other-metadata": (
        lambda root: pq.write_table(pa.table({"image": [picture() for _ in range(20)], "label": [0, 1] * 10})
                                    .replace_schema_metadata({"huggingface": "{"}), root / "a.parquet"),
        "0 1", (16, 4, 0), "",
    ),
    "spark": (all_of(table("out.parquet/part-0.snappy.parquet", [0, 1] * 10), file("out.parquet/_SUCCESS", "")),
              "0 1", (16, 4, 0), ""),
    "C29": (lambda root: folders(root, "[v2] [v1]"), "[v1] [v2]", (16, 4, 0), ""),
    "C46": (images("cat dog", 10, ".JPG", "JPEG"), "cat dog", (16, 4, 0), ""),
    "C51": (all_of(images("cat dog", 50), images("rare", 1)), "cat dog rare", (81, 20, 0), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_is_there_is_read_and_told(case: str, tmp_path: Path) -> None:
    build, classes, images_of_splits, words = READ[case]
    root = tmp_path / case
    root.mkdir()
    build(root)
    source = prepared(root, tmp_path / "cache")
    assert " ".join(source.record.class_names) == classes
    if images_of_splits[1]:
        assert counts(source) == images_of_splits
    assert words in told(source)
    assert len(source.summary) <= 2


# What is built, and what the error says.
REFUSED: dict[str, tuple[Build, tuple[str, ...]]] = {
    "C01-classes-of-splits": (splits("cat", "dog"), ("contains the same folders (cat, dog)", "train, val and test")),
    "C01-class-then-split": (images("cat/train cat/test dog/train dog/test"), ("contains the same folders",)),
    "flat-splits": (images("train test"), ("train, named after splits", "no subfolders with images", "labels")),
    "flat-train": (images("train"), ("contains no subfolders with images",)),
    "split-of-one-class": (images("cat/train cat/val dog/train"), ("contains the same folders (train, val)",)),
    "several-labels": (all_of(images(".", 20), file("a.csv", "file,label\n" + LABELS + "0.png,cow\n")),
                       ("gives 0.png several labels, cat and cow", "one label per image")),
    "ids-of-both-splits": (
        all_of(images("train", 20), images("test", 25), file("a.csv", "id,label\n" + lines("N,C\n", 25))),
        ("20 names of files that are in several folders", "Write their folders into its column id, as in test/0.png"),
    ),
    "table-of-another-folder": (
        all_of(images("images/p1", 20), file("a.csv", "file,label\n" + lines("p2/N.png,C\n"))),
        ("names p2/0.png, which is not here; images/p1/0.png is another file", "from the table on, or names alone"),
    ),
    "two-columns-of-names": (
        all_of(images(".", 20), file("a.csv", "image,id,label\n" + "".join(f"{n},{19 - n},a\n" for n in range(20)))),
        ("by its column 'image', and others by 'id'", "extensions in the column that is meant"),
    ),
    "pandas-index-alone": (
        all_of(images(".", 20), file("a.csv", ",image,label\n" + lines("N,N.jpg,C\n"))),
        ("holds 20 images, but no folder for each class",),
    ),
    "odd-splits": (
        all_of(images(".", 20),
               file("a.csv", "file,label,split\n" + lines("N.png,C,S\n").replace("cat,test", "cat,"))),
        ("column 'split' has 3 of 20 values that name no split, such as ''", "Write train, val or test into each row"),
    ),
    "odd-splits-of-json-lines": (
        all_of(images(".", 20), file("a.jsonl", lines('{"file": "N.png", "label": "C", "split": "S"}\n')
                                     + '{"file": "0.png", "label": "cat", "split": null}')),
        ("has 1 of 21 values that name no split",),
    ),
    "odd-splits-of-parquet": (
        columns("a.parquet", label=[0, 1] * 10, split=["train"] * 14 + ["holdout", None] * 3),
        ("column 'split' has 6 of 20 values that name no split, such as 'holdout'",),
    ),
    "splits-of-parquet-and-others": (
        all_of(columns("train.parquet", label=[0, 1] * 10, split=["train"] * 14 + ["test"] * 6),
               columns("val.parquet", label=[0, 1] * 10, split=["val"] * 20)),
        ("train.parquet is of the train split by its name, but of test by its column",),
    ),
    "splits-of-one-parquet": (
        all_of(columns("a.parquet", label=[0, 1] * 10, split=["train"] * 14 + ["test"] * 6),
               columns("b.parquet", label=[0, 1] * 10)),
        ("b.parquet lacks the column of splits of other files",),
    ),
    "splits-and-other-folders": (
        all_of(images("train/cat train/dog", 20), splits("test"),
               file("a.csv", "file,split\n" + lines("train/C/N.png,S\n"))),
        ("a.csv says test of train/cat/14.png, whose folder is of the train split",),
    ),
    "splits-of-some": (
        all_of(images("cat dog", 12),
               file("a.csv", "file,split\n" + lines("cat/N.png,train\n", 12) + lines("dog/N.png,S\n", 9)
                             + "dog/9.png,test\n")),
        ("has a column of splits, but lacks 2 images, first dog/10.png",),
    ),
    "image-in-two-splits": (
        all_of(images(".", 20), file("a.csv", "file,label,split\n" + lines("N.png,C,S\n") + "0.png,cat,test\n")),
        ("gives 0.png several splits, train and test",),
    ),
    "zipped-folders": (all_of(file("cat.zip", "PK"), file("dog.zip", "PK")), ("contains no images: 2 .zip",)),
    "cats-and-dogs": (images("train"), ("contains no subfolders with images", "one subfolder per class")),
    "no-extension": (images("cat dog", 5, ""), ("10 without an extension", "is an image", "extensions, such as .jpg")),
    "floats": (saved(Image.fromarray(np.ones((8, 8), np.float32) / 3)),
               ("8 of 8 training images cannot be decoded", "floating-point pixels", "repair or remove these images.")),
    "32-bits": (saved(Image.fromarray(np.full((8, 8), -9, np.int32))),
                ("8 of 8 training images cannot be decoded", "are not of 16 bits")),
    "NaN-labels": (columns("a.parquet", label=[0.0, 1.0] * 9 + [float("nan")] * 2), ("some images have no label",)),
    "empty-labels": (columns("a.parquet", label=["cat", "dog", "", "cat"] * 5), ("some images have no label",)),
    "huge-ids": (columns("a.parquet", label=pa.array([2**63 + 1, 5] * 10, pa.uint64())), ("'label' cannot be read",)),
    "a-name-twice": (table("a.parquet", [0, 1] * 10, ["cat", "cat"]), ("a name for two classes: cat, cat",)),
    "urls": (lambda root: parquet(root / "a.parquet", [0, 1] * 5, pa.array(["https://a.example/0.png"] * 10)),
             ("it is a URL", "download the images first")),
    "only-test": (splits("test"), ("only validation or test images (test)", "train/")),
    "split-or-class": (all_of(splits("train"), images("bus car")), ("whether train is a split or a class", "bus, car")),
    "C06-dead-link": (all_of(images("cat dog"), link("rose", "/mnt/nowhere/rose")), ("rose", "a link to nothing")),
    "C06-dead-split": (all_of(splits("train"), link("val", "/mnt/nowhere")), ("val", "a link to nothing")),
    "C10-heic": (all_of(images("cat dog"), images("rat", 10, ".cr2")), ("rat contains no images", ".cr2")),
    "only-unknown": (images("cat dog", 10, ".cr2"), ("contains no images", "20 .cr2")),
    "C43": (images(".", 20), ("holds 20 images, but no folder for each class", "metadata.csv")),
    "C43-columns": (all_of(images(".", 20), file("a.csv", "file,x,y\n" + LABELS.replace(",", ",1,"))),
                    ("the columns file, x, y", "--label-column")),
    "C51-empty": (all_of(images("cat dog"), lambda root: (root / "empty").mkdir()), ("empty contains no images",)),
    "hidden-only": (all_of(images("cat dog"), file("empty/.DS_Store", "")), ("empty contains no images",)),
    "same-images-twice": (
        all_of(images("cat"), lambda root: shutil.copytree(root / "cat", root / "dog")),
        ("20 of 20 images are in more than one class",),
    ),
    "C33-lost-paths": (
        lambda root: parquet(root / "a.parquet", [0, 1] * 10,
                             pa.array([{"bytes": None, "path": f"/old/{n}.png"} for n in range(20)], IMAGE)),
        ("None of 20 images", "No such file"),
    ),
    "other-text": (all_of(table("a.parquet", [0, 1] * 5, ["dog", "cat"]), table("b.parquet", ["cow"] * 5)),
                   ("b.parquet has the classes cow", "the first file has dog, cat")),
    "numbers-beside-text": (all_of(table("train.parquet", [0, 1] * 10), table("val.parquet", ["a", "b"] * 5)),
                            ("class 'a'",)),
    "fractions": (table("a.parquet", [0.5, 1.5] * 5), ("'label' cannot be read",)),
    "lists": (table("a.parquet", [[0], [1]] * 5), ("Labels must be numbers, text, categories or booleans",)),
    "arrays": (lambda root: parquet(root / "a.parquet", [0, 1], pa.array([[1, 2], [3, 4]])),
               ("Images must be a struct {bytes, path}, bytes, or paths",)),
    "lfs": (lambda root: [text(root / c / f"{n}.png", f"version https://git-lfs.github.com/spec/v1\noid {c}{n}\n")
                          for c in ("cat", "dog") for n in range(5)], ("a pointer of Git LFS", "git lfs pull")),
    "annex": (lambda root: [folders(root, "cat dog", 0)]
              + [(root / c / f"{n}.png").symlink_to(f"../.git/annex/objects/{n}")
                            for c in ("cat", "dog") for n in range(5)], ("a link to ../.git/annex/objects/0",)),
    "html": (lambda root: [text(root / c / f"{n}.jpg", f"<!DOCTYPE html><p>404 {c}{n}") for c in ("cat", "dog")
                           for n in range(5)], ("an HTML page",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_with_the_remedy(case: str, tmp_path: Path) -> None:
    build, words = REFUSED[case]
    root = tmp_path / case
    root.mkdir()
    build(root)
    with pytest.raises(UserError) as error:
        open_source(DataConfig.of(data=str(root), cache_dir=tmp_path / "cache")).prepare()
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rose", "train", "cat/more"])
def test_a_folder_that_may_not_be_read_is_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C06; these tests may run as root, who may read everything."""
    folders(tmp_path, f"cat dog {name}")
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).rstrip("/").endswith(name):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(listing.os, "scandir", refuse)
    with pytest.raises(UserError, match=f"{name}.* cannot be read: Permission denied"):
        open_source(str(tmp_path))
    assert f"{name}/ cannot be read" in check_data(str(tmp_path)).refused.replace(f"{name} cannot", f"{name}/ cannot")


@pytest.mark.parametrize("case", ["C07", "C08", "C43-images-below", "C01-train-test", "val-and-test", "thumbnails"])
def test_a_bucket_is_read_by_the_same_rule(case: str, tmp_path: Path) -> None:
    build, classes, images_of_splits, _ = READ[case]
    root = tmp_path / case
    root.mkdir()
    build(root)
    fsspec.filesystem("memory").put(str(root), f"/{tmp_path.name}/{case}", recursive=True)
    source = open_source(DataConfig.of(data=f"memory://{tmp_path.name}/{case}", cache_dir=tmp_path / "cache"))
    assert " ".join(source.record.class_names) == classes
    assert counts(source) == images_of_splits


def test_a_pattern_is_split_by_folders_too(tmp_path: Path) -> None:
    """C07."""
    READ["C07"][0](tmp_path)
    assert counts(open_source(f"{tmp_path}/default/**/*.parquet")) == (18, 2, 10)
    folders(tmp_path, "cat dog")
    with pytest.raises(UserError, match=r"matches images, such as .*png, and not Parquet"):
        open_source(f"{tmp_path}/*/*.png")


def test_a_table_beside_class_folders_is_used_where_it_is_asked_for(tmp_path: Path) -> None:
    READ["parts-and-a-table"][0](tmp_path)
    source = prepared(tmp_path, tmp_path.parent / "cache", label_column="label")
    assert source.record.class_names == ("cat", "dog")
    assert source.splits["train"].labels.tolist() == [0, 1] * 10
    assert "other labels" not in told(source)


def classes_of(source: Source, split: Split) -> dict[str, str]:
    """Return the class of each image of a split by its name."""
    encoded, names = source.splits[split], source.record.class_names
    folder = f"{source.record.name}/"
    return {encoded.name(row).partition(folder)[2]: names[label] for row, label in enumerate(encoded.labels.tolist())}


def test_a_name_in_a_table_is_that_of_an_image_of_one_split(tmp_path: Path) -> None:
    """Both splits have images of the same names, and the table says of which its rows are."""
    root = tmp_path / "data"
    folders(root, "train test", 20)
    rows = [("train", n, "cat" if n % 2 else "dog") for n in range(20)]
    rows += [("test", n, "cat" if n < 8 else "dog") for n in range(20)]
    text(root / "labels.csv", "file,label\n" + "".join(f"old/{split}/{n}.png,{name}\n" for split, n, name in rows))
    source = open_source(str(root))
    for split in ("train", "test"):
        assert classes_of(source, split) == {f"{of}/{n}.png": name for of, n, name in rows if of == split}


def test_images_in_other_folders_than_a_table_names_are_told(tmp_path: Path) -> None:
    READ["label-studio"][0](tmp_path)
    assert "names /data/upload/1/0.png; images/0.png is taken for it" in told(open_source(str(tmp_path)))


@pytest.mark.parametrize("case", ["pandas-index", "pandas-index-and-id"])
def test_an_index_of_pandas_is_not_taken_for_the_names_of_files(case: str, tmp_path: Path) -> None:
    READ[case][0](tmp_path)
    source = open_source(str(tmp_path))
    assert classes_of(source, "train") == {f"{n}.png": ("cat", "dog")[n % 2] for n in range(20)}


def test_streamed_images_are_told_of_as_those_in_memory_are(tmp_path: Path) -> None:
    """Labels of equal images and JPEGs without their end, of which `data check` counts as many."""
    random, root = np.random.default_rng(0), tmp_path / "data"
    for name in ("cat", "dog"):
        for number in range(10):
            whole = encode_pixels(random.integers(0, 256, (24, 24, 3), np.uint8), "JPEG")
            raw(f"{name}/{number}.jpg", whole[:-2])(root)
    shutil.copy(root / "cat/0.jpg", root / "dog/x.jpg")
    source = prepared(root, tmp_path / "cache")
    (conflicts,) = source.check_labels()
    assert conflicts in source.notes
    assert conflicts.startswith("2 images with more than one label")
    met = set[str]()
    for split in ("train", "val"):
        images = StreamedImages.of(source, split, torch.device("cpu"), lambda _: None)
        list(images.load_batches(images.sequential_batches(8, 0, 1), lambda: None))
        met |= {image.name for image in images.cut}
    assert cut_note(len(met)) in source.notes
    separate = open_source(DataConfig.of(data=str(root), val_data=str(root)))
    assert "data check" in separate.check_labels()[0]


def test_validation_images_may_say_so_in_a_column(tmp_path: Path) -> None:
    columns("train.parquet", label=[0, 1] * 10, split=["train"] * 20)(tmp_path)
    columns("val.parquet", label=[0, 1] * 10, split=["val"] * 20)(tmp_path)
    train, val = (tmp_path / f"{split}.parquet" for split in ("train", "val"))
    assert counts(open_source(DataConfig.of(data=str(train), val_data=str(val)))) == (20, 20, 0)


def test_an_empty_path_is_not_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a variable that is not set."""
    folders(tmp_path, "cat dog")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--data is empty"):
        open_source("")
    assert open_source(".").record.class_names == ("cat", "dog")


def test_a_folder_with_the_name_of_a_dataset_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C09."""
    monkeypatch.chdir(tmp_path)
    folders(tmp_path / "digits", "mine yours")
    (note,) = open_source("digits").notes
    assert "--data ./digits" in note
    assert open_source("./digits").record.class_names == ("mine", "yours")


def test_jpegs_without_their_end_are_read_with_a_note(tmp_path: Path) -> None:
    """C28."""
    pixels: dict[bool, list[np.ndarray]] = {}
    for is_cut in (False, True):
        root = tmp_path / str(is_cut)
        random = np.random.default_rng(0)
        for name in ("cat", "dog"):
            (root / name).mkdir(parents=True)
            for number in range(25):
                whole = encode_pixels(random.integers(0, 256, (24, 24, 3), np.uint8), "JPEG")
                cut = is_cut and number % 5 == 0
                (root / name / f"{number:02}.jpg").write_bytes(whole[:-2] if cut else whole)
        source = prepared(root, tmp_path / "cache")
        assert source.record.bad_images == 0
        pixels[is_cut] = sorted((image for split in ("train", "val") for image in source.load(split).pixels), key=bytes)
        assert (
            "images without the end of the JPEG" in told(source)
        ) == is_cut  # all, but those that Pillow reads itself
    assert np.array_equal(pixels[True], pixels[False])
    (finding,) = [each for each in check_data(str(root)).findings if each.name == "cut images"]
    assert f"{finding.summary}." in source.notes
    first = root / "cat" / "01.jpg"
    first.write_bytes(first.read_bytes()[:-400])  # more than the end
    assert prepared(root, tmp_path / "cache", max_bad_images=0.1).record.bad_images == 1


def test_the_share_of_broken_images_is_a_setting(tmp_path: Path) -> None:
    """C28; `data check` counts them as training does."""
    folders(tmp_path / "data", "cat dog", 20)
    for number in range(4):
        text(tmp_path / "data" / "cat" / f"{number}.png", f"no image {number}")
    config = {"data": str(tmp_path / "data"), "cache_dir": tmp_path / "cache"}
    with pytest.raises(UserError, match=r"it is not an image, but text.*--max-bad-images 0\.\d+"):
        open_source(DataConfig.of(**config)).prepare()
    source = prepared(tmp_path / "data", tmp_path / "cache", max_bad_images=0.3)
    assert (source.record.bad_images, sum(counts(source))) == (4, 36)
    with pytest.raises(UserError, match="cannot be decoded"):
        open_source(DataConfig.of(**config, max_bad_images=0.01)).prepare()  # decoded before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("picture.png", picture(), "is no dataset, but one image"),
        ("data.zip", b"PK\x03\x04rest", "is no dataset, but a ZIP archive: extract it"),
        ("data.tar.gz", b"\x1f\x8b\x08", "is no dataset, but a gzip archive"),
        ("data.tar", b"x" * 257 + b"ustar", "is no dataset, but a tar archive"),
        ("labels.csv", b"file,label\n", "is no dataset, but text"),
        ("page.html", b"\n<!DOCTYPE HTML>", "is no dataset, but an HTML page"),
        ("data.h5", b"\x89HDF\r\n", "is no dataset, but an HDF5 file"),
        ("data.bin", b"\xfe\xfe\xfe", "is no dataset, but a file of another kind"),
    ],
)
def test_a_file_that_is_no_dataset_is_called_what_it_is(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        check_data(str(tmp_path / name))
    assert "subfolder of images per class" in str(error.value)


def test_what_is_no_image_says_what_it_is() -> None:
    kinds = {
        b"../../.git/annex/objects/a": "git-annex", b"outs:\n- md5: x": "DVC", b"<?xml version='1.0'?><svg": "SVG",
        b"<Error><Code>AccessDenied": "XML", b'{"error": "no"}': "JSON", b"Rar!": "archive", b"%PDF-1": "PDF",
        b"PAR1": "Parquet", b"\x93NUMPY": "NumPy", b"\0\0\0\x18ftypheic": "HEIC", b"\0\0\0\x18ftypisom": "video",
        bytes(20): "all of its bytes are zero",
    }  # fmt: skip
    for content, kind in kinds.items():
        assert kind in (describe_content(content) or ""), content
    assert describe_content(b"\xff\xd8\xff") is None
    assert not {".pdf", ".eps", ".h5", ".mpg", ".txt"} & image_extensions()


def test_photos_of_iphones_are_read_with_the_extra(tmp_path: Path) -> None:
    """C10."""
    heif = pytest.importorskip("pillow_heif")
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(5):
            pixels = Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), np.uint8))
            buffer = io.BytesIO()
            heif.from_pillow(pixels).save(buffer)
            (tmp_path / "data" / name / f"{number}.HEIC").write_bytes(buffer.getvalue())
    assert counts(prepared(tmp_path / "data", tmp_path / "cache")) == (8, 2, 0)


def test_12_bits_in_16_are_told(tmp_path: Path) -> None:
    """C14."""
    for number in range(20):
        file = tmp_path / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 4096, (16, 16), np.uint16)).save(file)
    source = open_source(str(tmp_path))
    assert source.record.bit_depth == 12
    assert "use 12 bits" in told(source)


def test_images_unlike_those_sampled_are_told(tmp_path: Path) -> None:
    """Training reads the headers of 64 images before it decodes all of them."""
    root, count = tmp_path / "data", 140
    sampled = np.linspace(0, count - 1, HEADERS_READ).astype(int)
    for number in range(count):
        file = root / "ab"[number // 70] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(RANDOM.integers(0, 256, (8, 8), np.uint8))
        if number not in sampled and number % 3 == 0:
            image = image.resize((12, 8)).convert("RGB")
        elif number not in sampled and number % 3 == 1:
            image = Image.fromarray(RANDOM.integers(0, 4096, (8, 8), np.uint16))
        image.save(file)
    modes = [Image.open(file).mode for file in root.rglob("*.png")]
    wide, colored = modes.count("I;16"), modes.count("RGB")
    for _ in range(2):  # decoded, and from the cache
        notes = told(prepared(root, tmp_path / "cache"))
        assert f"{wide} images of 16 bits, unlike" in notes
        assert f"{colored} images in color, unlike" in notes
        assert f"{colored} images of another size, unlike" in notes
    found = {each.name: each.summary for each in check_data(str(root)).findings if each.state == "warning"}
    assert f"{wide} images of 16 bits" in found["16-bit images"]
    assert f"{colored} images" in found["colors lost"]
    assert f"{colored} images will be resized and cropped to 8x8" in found["other sizes"]


def test_classes_that_look_alike_are_told(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", ["caf\u00e9", "cafe\u0301", "Tea", "tea", "rum"] * 10)
    (finding,) = [each for each in check_data(str(tmp_path)).findings if each.name == "alike names"]
    assert finding.state == "warning"
    assert sorted(finding.details) == [r"'Tea' and 'tea'", r"'cafe\u0301' and 'caf\xe9'"]
