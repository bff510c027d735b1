"""The page in a browser: Gradio in front of ``lookupvit_video.inference.page.page``, on this machine alone, offline."""

import html
import importlib
import logging
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from matplotlib.colors import to_hex

from lookupvit_video.drawing.figures import class_color
from lookupvit_video.errors import UserError
from lookupvit_video.inference.page.page import Page, Shown

App = Callable[..., Awaitable[None]]
HOST = "127.0.0.1"
FIRST_PORT = 7860  # Gradio's own
QUEUE_LENGTH = 16  # further requests are rejected
KEPT = 3600  # seconds until uploads and pictures are removed
# The browser must not contact other machines, whatever Gradio's own pages load.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:"
CSS = """
h1 { font-size: 1.6rem; margin: 0; }
h3 { font-size: 1.05rem; margin: 0.4rem 0; }
#status p { font-size: 1.15rem; margin: 0.3rem 0; overflow-wrap: anywhere; }
#status p.failed { color: #b42318; font-weight: 600; }
.dark #status p.failed { color: #ff9c8f; }
:is(#steps, #classes) table { width: 100%; border-collapse: collapse; }
:is(#steps, #classes) :is(table, tr, td) { border: none; }
:is(#steps, #classes) td { padding: 0.2rem 0; }
#classes td { padding-right: 0.6rem; overflow-wrap: anywhere; }
#classes td:nth-child(2) { width: 50%; }
#classes td div { height: 0.9rem; min-width: 1px; }
#classes td:last-child { padding: 0; }
:is(#steps, #classes) td:last-child { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
#steps tr:last-child td { border-top: 1px solid var(--border-color-primary); font-weight: 600; }
"""
# Gradio warns if the browser cannot play an upload; the page itself reports problems that matter.
SCRIPT = """() => new MutationObserver(() => {
  for (const toast of document.querySelectorAll(".toast-body"))
    if (toast.textContent.includes("Video not playable")) toast.style.display = "none";
}).observe(document.body, {childList: true, subtree: true})"""


def import_gradio(folder: Path) -> Any:
    """Import Gradio so that it contacts no other machine and writes below one folder only.

    Raises:
        UserError: it is not installed.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder / "files")}
    for name in ("no_proxy", "NO_PROXY"):  # or its own request to the page would fail in the proxy
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
    try:
        return importlib.import_module("gradio")
    except ImportError:
        raise UserError("the page needs gradio: pip install -e .[app]") from None


def build(gradio: Any, page: Page, title: str, folder: Path) -> Any:
    """Return the page as ``gradio.Blocks``.

    Args:
        title: plain text.
        folder: for the pictures of an answer, until Gradio has copied them.
    """
    limits = page.limits
    with gradio.Blocks(title="LookupViT for video", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gradio.HTML(f"<h1>LookupViT for video</h1><p>{html.escape(title)}</p>")
        with gradio.Row():
            with gradio.Column(scale=2):
                label = f"Video: at most {limits.megabytes} MB, {limits.seconds:g} s"
                camera = gradio.WebcamOptions(mirror=False)  # left stays left
                video = gradio.Video(label=label, sources=["upload", "webcam"], include_audio=True, height=300,
                                     webcam_options=camera, elem_id="video")  # fmt: skip
                keep_local(video)
                budgets = [(words, name) for name, words in page.budgets.items()]
                choice = "Budget: compressed grid, blocks (b), shares of lookup tokens (k)"
                budget = gradio.Radio(budgets, value=page.default_budget, label=choice, visible=bool(budgets),
                                      elem_id="budget")  # fmt: skip
                button = gradio.Button("Answer", variant="primary", elem_id="answer")
                steps = gradio.HTML(visible=False, elem_id="steps")
            with gradio.Column(scale=3):
                status = gradio.HTML(status_line(Shown("Choose a video, or drop one.")), elem_id="status")
                classes = gradio.HTML(elem_id="classes")
                heading = "Where the answer comes from: frames, and the same under attention"
                overlay = _section(gradio, heading, gradio.Video, "overlay", ["download"], autoplay=True, loop=True)
        pictures = ["download", "fullscreen"]
        sheet = _section(gradio, "Where the model looked", gradio.Image, "sheet", pictures, type="filepath")
        timeline = _section(gradio, "What happens when", gradio.Image, "timeline", pictures, type="filepath")

        def answer(path: str | None, chosen: str | None) -> Iterator[list[Any]]:
            with tempfile.TemporaryDirectory(dir=folder) as made:
                for shown in page.answer(path, chosen if budgets else None, Path(made)):
                    found: list[Any] = [status_line(shown), class_bars(shown)]
                    found.append(gradio.update(value=table_of(shown), visible=bool(shown.steps)))
                    for file in (shown.overlay, shown.sheet, shown.timeline):
                        found += [gradio.update(visible=file is not None), file and str(file)]
                    yield found

        outputs = [status, classes, steps, *overlay, *sheet, *timeline]
        button.click(answer, [video, budget], outputs, show_progress="hidden", api_visibility="private",
                     concurrency_limit=1)  # fmt: skip
    return blocks.queue(max_size=QUEUE_LENGTH, api_open=False, default_concurrency_limit=1)


def _section(gradio: Any, heading: str, kind: Any, name: str, buttons: list[str], **settings: Any) -> tuple[Any, Any]:
    """Return a hidden part of the page, and the picture or video below its heading."""
    with gradio.Column(visible=False) as part:
        gradio.HTML(f"<h3>{heading}</h3>")
        media = kind(show_label=False, interactive=False, elem_id=name, buttons=buttons, **settings)
    return part, media


def keep_local(component: Any) -> None:
    """Make a component refuse addresses in place of uploaded files, which Gradio would fetch.

    Gradio (6.31) has no setting for this, and its own check only refuses private addresses; so replace the two methods
    that every file passes through.
    """
    move = component.move_resource_to_block_cache

    def move_local(path: Any) -> Any:
        if str(path).lower().startswith(("http:", "https:")):
            raise UserError("upload a file; addresses are not fetched")
        return move(path)

    async def move_local_async(path: Any) -> Any:
        return move_local(path)

    component.move_resource_to_block_cache = move_local
    component.async_move_resource_to_block_cache = move_local_async


def status_line(shown: Shown) -> str:
    """Return the status line as HTML; names of files and classes are escaped."""
    return f'<p class="{"failed" if shown.failed else "plain"}">{html.escape(shown.status)}</p>'


def table_of(shown: Shown) -> str:
    """Return the steps and their seconds as HTML."""
    total = sum(seconds for _, seconds in shown.steps)
    rows = [*shown.steps, ("all", total)]
    cells = "".join(f"<tr><td>{html.escape(name)}</td><td>{seconds:.2f} s</td></tr>" for name, seconds in rows)
    return f"<h3>Time of each step</h3><table>{cells}</table>"


def class_bars(shown: Shown) -> str:
    """Return the likeliest classes and their probabilities as HTML, each with its color."""
    rows = [
        f'<tr><td>{html.escape(name)}</td><td><div style="width: {share:.1%}; '
        f'background: {to_hex(class_color(number))}"></div></td><td>{share:.0%}</td></tr>'
        for (name, share), number in zip(shown.classes.items(), shown.numbers, strict=True)
    ]
    heading = f"<h2>{html.escape(next(iter(shown.classes)))}</h2>" if rows else ""
    return f"{heading}<table>{''.join(rows)}</table>"


def with_policy(app: App) -> App:
    """Return an ASGI app that adds ``POLICY`` to every response of another."""

    async def respond(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await app(scope, receive, send_with_policy)

    return respond


def serve(gradio: Any, blocks: Any, port: int, megabytes: int) -> None:
    """Serve the page on this machine until the process is interrupted (Ctrl-C).

    Args:
        port: 0: the first free one from 7860 on.
        megabytes: largest upload, of 2^20 bytes.

    Raises:
        UserError: the port is taken.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # logs every request of Gradio to itself
    middleware = importlib.import_module("starlette.middleware").Middleware
    try:
        _, address, _ = blocks.launch(
            server_name=HOST, server_port=port or None, share=False, quiet=True, prevent_thread_lock=True,
            max_file_size=megabytes << 20, show_error=False, footer_links=[], run_history=False, ssr_mode=False,
            pwa=False, mcp_server=False, enable_monitoring=False, css=CSS, js=SCRIPT, theme=gradio.themes.Default(),
            app_kwargs={"middleware": [middleware(with_policy)]},
        )  # fmt: skip
    except OSError:
        raise UserError(
            f"--port {port}: no free port; --port 0 takes the first free one from {FIRST_PORT} on"
        ) from None
    print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
    finally:
        blocks.close(verbose=False)
