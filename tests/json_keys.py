"""What `--json` prints keeps every key that it had before results were models, with values of the same type.

integration/data/json_keys.json was recorded at the commit before. More keys may come; none may go or change.
"""

import json
from pathlib import Path
from typing import Any

Keys = dict[str, str]
RECORDED = Path(__file__).parent / "integration" / "data" / "json_keys.json"
NAMES = {bool: "bool", int: "number", float: "number", str: "string", type(None): "null"}


def keys(value: Any, path: str = "") -> Keys:
    """Each key, with the types of its values; of the items of lists those of all together."""
    inner = (
        [(f"{path}.{name}".lstrip("."), item) for name, item in value.items()]
        if isinstance(value, dict)
        else [(f"{path}[]", item) for item in value]
        if isinstance(value, list)
        else []
    )
    kind = "object" if isinstance(value, dict) else "list" if isinstance(value, list) else NAMES[type(value)]
    found_keys: Keys = {path: kind}
    for name, item in inner:
        for key, kinds in keys(item, name).items():
            found_keys[key] = " or ".join(sorted({*found_keys.get(key, kinds).split(" or "), *kinds.split(" or ")}))
    return found_keys


def assert_keys(name: str, result: Any) -> None:
    """Assert that the result of a command, `name` in json_keys.json, has every recorded key."""
    recorded: Keys = json.loads(RECORDED.read_text())[name]
    now = keys(result)
    assert {key: now.get(key) for key in recorded} == recorded, name
