"""What stands between the page and Gradio, without a server; tests/commands/test_app.py has one."""

import asyncio
import os
import sys

import pytest
from matplotlib.colors import to_hex

from lookupvit_video.drawing.figures import class_color
from lookupvit_video.inference.page.gradio_page import (
    POLICY,
    class_bars,
    import_gradio,
    keep_local,
    status_line,
    table_of,
    with_policy,
)
from lookupvit_video.inference.page.page import Shown


def test_strangers_text_is_no_html():
    shown = Shown("<script>&.mp4: <b>", failed=True, steps=(("<i>read", 1.234), ("draw", 2.0)))
    assert status_line(shown) == '<p class="failed">&lt;script&gt;&amp;.mp4: &lt;b&gt;</p>'
    table = table_of(shown)
    assert "<td>&lt;i&gt;read</td><td>1.23 s</td>" in table
    assert "<td>all</td><td>3.23 s</td>" in table


def test_classes_are_bars_in_their_colors():
    text = class_bars(Shown("x", classes={"<b>": 0.756, "c": 0.2}, numbers=(12, 1)))
    assert text.startswith("<h2>&lt;b&gt;</h2>")
    for name, share, percent, number in (("&lt;b&gt;", "75.6%", "76%", 12), ("c", "20.0%", "20%", 1)):
        bar = f'<div style="width: {share}; background: {to_hex(class_color(number))}"></div>'
        assert f"<tr><td>{name}</td><td>{bar}</td><td>{percent}</td></tr>" in text
    assert class_bars(Shown("x")) == "<table></table>"


def test_addresses_are_not_fetched():
    class Component:
        moved: list[str]

        def __init__(self):
            self.moved = []

        def move_resource_to_block_cache(self, path):
            self.moved.append(path)
            return "cached"

        async_move_resource_to_block_cache = None

    component = Component()
    keep_local(component)
    assert component.move_resource_to_block_cache("/tmp/x.mp4") == "cached"
    assert asyncio.run(component.async_move_resource_to_block_cache("/tmp/y.mp4")) == "cached"
    for address in ("http://localhost/a.mp4", "HTTPS://localhost/a.mp4"):
        with pytest.raises(ValueError, match="addresses are not fetched"):
            component.move_resource_to_block_cache(address)
        with pytest.raises(ValueError, match="addresses are not fetched"):
            asyncio.run(component.async_move_resource_to_block_cache(address))
    assert component.moved == ["/tmp/x.mp4", "/tmp/y.mp4"]


def test_every_answer_bears_the_policy():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message):
        sent.append(message)

    asyncio.run(with_policy(app)({}, None, send))
    assert sent[0]["headers"] == [(b"a", b"b"), (b"content-security-policy", POLICY.encode())]
    assert sent[1] == {"type": "http.response.body", "body": b"x"}


def test_gradio_that_is_not_there(tmp_path, monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "before")  # so that it is put back
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"pip install -e .\[app\]"):
        import_gradio(tmp_path)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["GRADIO_TEMP_DIR"].startswith(str(tmp_path))
    assert os.environ["NO_PROXY"] == "before,127.0.0.1"
