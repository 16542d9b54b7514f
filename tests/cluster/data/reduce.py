"""Makes the reduced schemas beside this file: python reduce.py KUBERAY_CHECKOUT COMPOSE_SPEC_CHECKOUT."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def without_descriptions(node: Any, in_properties: bool = False) -> Any:
    """A schema without its prose; a property that is called description stays."""
    if isinstance(node, dict):
        return {
            key: without_descriptions(
                value, key in {"properties", "definitions", "patternProperties"} and not in_properties
            )
            for key, value in node.items()
            if in_properties or not (key == "description" and isinstance(value, str))
        }
    return [without_descriptions(item) for item in node] if isinstance(node, list) else node


def write(name: str, content: Any) -> None:
    """Write compressed JSON, the same bytes for the same content."""
    text = json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
    (HERE / name).write_bytes(gzip.compress(text, 9, mtime=0))


def main() -> None:
    """Reduce the schemas of KubeRay's resources and of Compose."""
    kuberay, compose = Path(sys.argv[1]), Path(sys.argv[2])
    schemas = {}
    for resource in ("rayclusters", "rayjobs"):
        definition = yaml.safe_load((kuberay / f"helm-chart/kuberay-operator/crds/ray.io_{resource}.yaml").read_text())
        (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
        schemas[definition["spec"]["names"]["kind"]] = without_descriptions(version["schema"]["openAPIV3Schema"])
    write("kuberay-crds.json.gz", schemas)
    write("compose-spec.json.gz", without_descriptions(json.loads((compose / "schema/compose-spec.json").read_text())))


if __name__ == "__main__":
    main()
