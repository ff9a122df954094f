"""What the panel says, in every language that there is: nothing is missing and nothing is left over."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LOCALES = sorted((ROOT / "jupyter_vgpu" / "locale").glob("*/LC_MESSAGES/jupyter_vgpu.json"))
TEXT = r"'((?:[^'\\]|\\.)*)'"


def said() -> set[str]:
    """What the front end gives to its translator: the first argument of each call."""
    found: set[str] = set()
    for source in (ROOT / "labextension" / "src").glob("*.ts*"):
        code = source.read_text()
        texts = re.findall(rf"\.(?:__|_n)\(\s*{TEXT}", code)
        assert len(texts) == len(re.findall(r"\.(?:__|_n)\(", code)), f"{source.name}: only plain texts can be found"
        found |= set(texts)
    return found


def of_settings(schema: Any) -> set[str]:
    """Titles and descriptions, which JupyterLab translates."""
    if isinstance(schema, dict):
        own = {f"schema\u0004{schema[key]}" for key in ("title", "description") if isinstance(schema.get(key), str)}
        return own.union(*(of_settings(value) for value in schema.values()))
    return set()


@pytest.mark.parametrize("locale", LOCALES, ids=lambda path: path.parts[-3])
def test_each_language_has_all_of_it_with_its_values(locale: Path) -> None:
    told = json.loads(locale.read_text())
    schema = json.loads((ROOT / "labextension" / "schema" / "panel.json").read_text())
    wanted = said() | of_settings(schema)
    assert set(told) - {""} == wanted
    for text, translations in told.items():
        if text and "\u0004" not in text:
            values = set(re.findall(r"%\d", text))
            assert all(
                translation and values <= set(re.findall(r"%\d", translation)) for translation in translations
            ), text


def test_simplified_chinese_is_there() -> None:
    assert "zh_CN" in [path.parts[-3] for path in LOCALES]
