import json

import pytest

from tests.gates.audit import verdict

FINE = {"name": "a", "version": "1", "vulns": []}
HOLED = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}, {"id": "CVE-2"}]}
UNKNOWN = {"name": "c", "version": "3", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "said", "code"),
    [
        ([FINE, UNKNOWN], "0 published holes in 1 of 2", 0),
        ([FINE, HOLED], "b 2: CVE-1, mended in 3\nb 2: CVE-2, mended in no version yet\npip-audit: 2 published", 1),
        ([UNKNOWN], "knows none of these 1 packages from here", 0),
    ],
    ids=["none", "two", "nobody knows"],
)
def test_holes_fail_and_what_was_not_asked_is_said(packages, said, code):
    found = verdict(json.dumps({"dependencies": packages}))
    assert said in found[0]
    assert found[1] == code


@pytest.mark.parametrize("output", ["", "<html>", "[]", "{}", "null"])
def test_a_database_that_cannot_be_reached_is_said(output):
    said, code = verdict(output)
    assert "cannot be reached" in said
    assert code == 0
