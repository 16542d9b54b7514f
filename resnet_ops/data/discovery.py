"""What lies under a path or goes by a name: a folder of class folders, Parquet files, a data set that is downloaded."""

import re
from dataclasses import replace
from glob import has_magic
from pathlib import Path

from resnet_ops import files
from resnet_ops.config import DATA_SETS, DataConfig
from resnet_ops.data import folders, listing, named, parquet
from resnet_ops.data.cache import cache_folder
from resnet_ops.data.dataset import DiscoveredData
from resnet_ops.errors import UserError, did_you_mean

EMBEDDED = {"digits": Path(__file__).with_name("digits.parquet")}


def discover(config: DataConfig) -> DiscoveredData:
    """What lies under the paths of `config`, or goes by their names, fit for training or not.

    Raises:
        UserError: Nothing that could be looked at.
    """
    found = _find(config.data, "--data", config)
    if config.val_data is None:
        return found
    other = _find(config.val_data, "--val-data", config)
    return replace(
        found,
        val=other.val or other.train,
        named_files=found.named_files or other.named_files,
        passed_over=(*found.passed_over, *other.passed_over),
    )


def absolute_paths(config: DataConfig) -> dict[str, object]:
    """The options that name places, as these can be found from any directory; what is no path stays as it is."""
    dirs = {name: getattr(config, name) for name in ("data_root", "cache_dir")}
    return {
        "data": _absolute(config.data),
        "val_data": config.val_data and _absolute(config.val_data),
        **{name: path and path.expanduser().absolute() for name, path in dirs.items()},
    }


def _absolute(place: str) -> str:
    path = Path(place).expanduser()
    is_path = place not in DATA_SETS and "://" not in place and (has_magic(place) or path.exists())
    return str(path.absolute()) if is_path else place


def _find(data: str, option: str, config: DataConfig) -> DiscoveredData:
    """What lies under a path, or goes by a name."""
    columns = config.image_column, config.label_column
    if data in EMBEDDED:
        return parquet.find_parquet([EMBEDDED[data]], data, (None, None))
    if data in DATA_SETS:
        return named.find_named(data, config.data_root or cache_folder(config.cache_dir) / "data")
    place = files.to_path(data)
    if not files.is_remote(place):
        place = place.expanduser()
    files.check_reachable(next(path for path in (place, *place.parents) if not has_magic(str(path))))
    try:
        if has_magic(data):
            matched = listing.expand_glob(place)
            name = _name(matched[0].absolute().parent.name) if matched else ""
            found = parquet.find_parquet(matched, name, columns) if matched else None
        elif files.is_file(place):
            found = parquet.find_parquet([place], _name(place.name.removesuffix(".parquet")), columns)
        else:
            metadata = [path for folder in (place, place / "data") for path in files.listed(folder)]
            tables = [path for path in metadata if path.suffix == ".parquet"]
            first = [path for path in tables if path.parent == place] or tables
            name = _name(place.name if files.is_remote(place) else place.resolve().name)
            found = parquet.find_parquet(first, name, columns) if first else folders.find_folders(place, name)
    except OSError as error:
        raise UserError(f"{option} {data} cannot be read: {error.strerror}.", "Check its permissions.") from None
    if found is not None:
        return found
    if not has_magic(data) and files.exists(place):
        raise UserError(
            f"{option} {data} contains no images.",
            "Use a folder of Parquet files, or one with a subfolder of images per class.",
        )
    raise UserError(
        f"{option} {data}: no such path, and no data set of that name.",
        f"{did_you_mean(data, DATA_SETS)} Data sets by name: {', '.join(DATA_SETS)}.",
    )


def _name(stem: str) -> str:
    """A short name that can be part of a run's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "images"
