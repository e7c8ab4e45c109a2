"""What a bill of materials calls the tools: scanners look them up under these names."""

from __future__ import annotations

import pytest

from compiler.bundle import report


@pytest.mark.parametrize(
    ("tool", "version", "url"),
    [
        ("onnxruntime", "1.23.0", "pkg:pypi/onnxruntime@1.23.0"),
        ("openvino-2022", "2022.3.2", "pkg:pypi/openvino@2022.3.2"),
        ("edgetpu-compiler", "16.0", "pkg:generic/edgetpu-compiler@16.0"),
    ],
)
def test_a_tool_has_the_url_that_it_is_published_under(tool: str, version: str, url: str) -> None:
    assert report.purl(tool, version) == url
