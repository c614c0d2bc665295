"""The JSON of every kind of record, pinned: which fields there are and of what type.

`python tests/records/test_schema.py` writes it again, after a change that is meant; readers of older files (and
`SCHEMA`) are to be thought of then.
"""

import json
from pathlib import Path
from typing import Any

from spikesink.records import Anatomy, GraftRecord, Section, TrainingRun, VerificationRecord
from spikesink.records.interventions import Interventions
from spikesink.records.scan import BosPair
from spikesink.records.study import CellRecord, StudyRecord

GOLDEN = Path(__file__).parent.parent / "golden" / "schema.json"


def tree(schema: dict[str, Any], known: dict[str, Any] | None = None) -> Any:
    """A JSON schema as nested fields with their types; `?` behind a name: the field may be left out."""
    known = schema.get("$defs", {}) if known is None else known
    if "$ref" in schema:
        return tree(known[schema["$ref"].rsplit("/", 1)[1]], known)
    if "properties" in schema:
        required = schema.get("required", [])
        fields = schema["properties"].items()
        return {name if name in required else f"{name}?": tree(field, known) for name, field in fields}
    if "anyOf" in schema:
        kinds = [tree(kind, known) for kind in schema["anyOf"]]
        plain = [kind for kind in kinds if kind != "null"]
        return plain[0] + " or null" if len(plain) == 1 and isinstance(plain[0], str) else {"any of": kinds}
    if schema.get("type") == "array":
        return [tree(schema["items"], known)]
    if isinstance(values := schema.get("additionalProperties"), dict):
        return {"*": tree(values, known)}
    return " or ".join(schema["enum"]) if "enum" in schema else schema.get("const", schema.get("type", "any"))


def content() -> dict[str, Any]:
    records = (Anatomy, Interventions, VerificationRecord, TrainingRun, GraftRecord, BosPair, CellRecord, StudyRecord)
    kinds = {**{kind.model_fields["kind"].default: kind for kind in records}, **Section.known}
    return {name: tree(kind.model_json_schema(by_alias=True)) for name, kind in sorted(kinds.items())}


def written() -> str:
    """One line a field of a record, so that a change is seen as a line."""
    kinds = []
    for kind, fields in content().items():
        lines = [f" {json.dumps(name)}: {json.dumps(field)}" for name, field in fields.items()]
        kinds.append(f'"{kind}": {{\n' + ",\n".join(lines) + "}")
    return "{" + ",\n".join(kinds) + "}\n"


def test_the_json_of_records_is_as_pinned():
    assert content() == json.loads(GOLDEN.read_text()), "changed on purpose? run this file, and say so in CHANGELOG.md"


if __name__ == "__main__":
    GOLDEN.write_text(written())
