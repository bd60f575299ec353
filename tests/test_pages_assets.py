"""Files that pages load: ours and the vendored ones, with their hashes, licences and lifetimes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from bitplan.api.dashboard import assets

STATIC = Path(__file__).parent.parent / "api" / "dashboard" / "static"
VENDOR = STATIC / "vendor"
LIST = json.loads((VENDOR / "vendor.json").read_text(encoding="utf-8"))["files"]


@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry["name"]) for entry in LIST])
def test_a_vendored_file_is_the_published_one(entry: dict[str, Any]) -> None:
    content = (VENDOR / entry["file"]).read_bytes()
    assert len(content) == entry["bytes"]
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode() == entry["integrity"]
    assert entry["package"] == f"npm:{entry['name']}@{entry['version']}"
    assert re.fullmatch(r"\d+\.\d+\.\d+", entry["version"])
    assert len((VENDOR / entry["license_file"]).read_text(encoding="utf-8")) > 400


def test_nothing_is_vendored_that_the_list_does_not_name() -> None:
    named = {entry[key] for entry in LIST for key in ("file", "license_file")}
    assert {path.name for path in VENDOR.iterdir()} == named | {"vendor.json"}


def test_files_are_kept_for_ever_under_an_address_of_their_version(http: TestClient) -> None:
    for name, asset in assets.assets().items():
        answer = http.get(assets.address(name))
        assert (answer.status_code, answer.content) == (200, (STATIC / name).read_bytes())
        assert answer.headers["content-type"].startswith(asset.media_type)
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        digest = base64.b64encode(hashlib.sha384(answer.content).digest()).decode()
        assert assets.integrity(name) == f"sha384-{digest}"


@pytest.mark.parametrize(
    "path",
    ["../page.py", "..%2fpage.py", "%2e%2e/page.py", "vendor", "vendor/", "", "no.js", "/etc/passwd"],
)
def test_only_listed_files_are_served(http: TestClient, path: str) -> None:
    answer = http.get(f"/static/{assets.version()}/{path}")
    assert answer.status_code == 404
    assert "def page" not in answer.text


def test_another_versions_address_is_gone(http: TestClient) -> None:
    assert http.get("/static/0000000000000000/page.js").status_code == 404


def test_a_file_that_does_not_exist_has_no_address() -> None:
    with pytest.raises(KeyError, match=r"nothing\.js"):
        assets.address("nothing.js")


@pytest.mark.parametrize("path", sorted(STATIC.glob("*.js")), ids=lambda path: path.name)
def test_our_scripts_import_what_is_there_and_evaluate_nothing(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    for imported in re.findall(r'from "\./([^"]+)"', source):
        assert (STATIC / imported).exists()
    assert not re.search(r"\beval\(|new Function|innerHTML|outerHTML\b.*=|\.style\b|https?://", source)


def test_styles_load_nothing() -> None:
    for path in STATIC.glob("*.css"):
        assert not re.search(r"url\(|@import", path.read_text(encoding="utf-8"))
