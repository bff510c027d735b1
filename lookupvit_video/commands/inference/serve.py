"""`lookupvit serve`: answers to videos over HTTP."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lookupvit_video.commands import options
from lookupvit_video.commands.predict import add_budgets, add_unsure, budget_of
from lookupvit_video.commands.run_command import share_cores
from lookupvit_video.errors import UserError
from lookupvit_video.processes.memory import importing
from lookupvit_video.text import one_line

if TYPE_CHECKING:
    from lookupvit_video.inference.predictor import Predictor
    from lookupvit_video.inference.serving.service import ServeOptions

logger = logging.getLogger(__name__)
EXAMPLES = """  pip install "lookupvit_video[serve]"
  lookupvit serve --checkpoint runs/demo_motion/model.pt
  curl --data-binary @video.mp4 http://127.0.0.1:8000/predict
  curl -F video=@video.mp4 "http://127.0.0.1:8000/predict?topk=3"
  lookupvit serve --checkpoint model.pt --allow-host videos.example.org
  curl --json '{"urls": ["https://videos.example.org/a.mp4"]}' http://127.0.0.1:8000/predict

Answers are the JSON of lookupvit predict. GET /health and GET /metrics (Prometheus) are for whoever runs it.
It listens on this machine only, unless --host is given, and has no passwords: docs/serving.md.
Exit code 0: ended by Ctrl-C or SIGTERM; 1: runtime failure; 2: invalid input.
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = options.make_parser("Answer videos over HTTP, many at a time, with one model.", EXAMPLES)
    add, number, positive = parser.add_argument, options.number, options.positive
    options.add_checkpoint(parser)
    add("--host", default="127.0.0.1", metavar="HOST", help="address to listen on; 0.0.0.0: all (default: 127.0.0.1)")
    add("--port", type=number(int, 0, 65535), default=8000, metavar="N", help="0: any free one (default: 8000)")
    add("--topk", type=number(int, 1, 1000), default=5, metavar="K", help="classes to name, where a request does not "
        "say (default: 5)")  # fmt: skip
    options.add_views(parser)
    options.add_batch_size(parser)
    add("--linger-ms", type=number(float, 0, 1000), default=20.0, metavar="MS", help="how long to wait for a fuller "
        "batch while videos are being read (default: 20)")  # fmt: skip
    add("--workers", type=number(int, 1, 256), default=options.default_workers(), metavar="N",
        help="processes that read videos (default: one per core, at most 8)")  # fmt: skip
    add_budgets(parser)
    add_unsure(parser)
    group = parser.add_argument_group("limits")
    add = group.add_argument
    add("--max-mb", type=number(int, 1, 10**5), default=200, metavar="MB", help="largest video (default: 200)")
    add("--max-seconds", type=options.seconds, default=600.0, metavar="S", help="longest video (default: 600)")
    add("--queue", type=positive, default=64, metavar="N", help="videos in progress; more are refused (default: 64)")
    add("--connections", type=positive, default=512, metavar="N", help="more are closed (default: 512)")
    add("--receive-seconds", type=options.seconds, default=30.0, metavar="S",
        help="to receive or fetch a video (default: 30)")  # fmt: skip
    add("--wait-seconds", type=options.seconds, default=60.0, metavar="S", help="from then to the answer (default: 60)")
    options.add_timeout(parser, 30.0, "seconds to open a video, and to decode its clips")
    group = parser.add_argument_group("addresses", "none are fetched unless their host is named")
    add = group.add_argument
    add("--allow-host", action="append", default=[], metavar="HOST[:PORT]", help="videos of this host may be asked "
        "for by http(s) address; may be repeated")  # fmt: skip
    add("--allow-private", action="append", default=[], metavar="HOST[:PORT]", help="the same, of a host with a "
        "private address: of this machine or its network")  # fmt: skip
    return parser.parse_args()


def serve_options(arguments: argparse.Namespace, predictor: "Predictor") -> "ServeOptions":
    """Return the options of the service."""
    from lookupvit_video.inference.page.upload import Limits
    from lookupvit_video.inference.serving.addresses import AllowedHosts
    from lookupvit_video.inference.serving.service import ServeOptions

    unsure = {"reject": arguments.reject, "coverage": arguments.coverage, "sets": arguments.sets}
    return ServeOptions(
        limits=Limits(arguments.max_mb, arguments.max_seconds),
        hosts=AllowedHosts.parse(arguments.allow_host, arguments.allow_private),
        queue=arguments.queue, connections=arguments.connections, receive=arguments.receive_seconds,
        wait=arguments.wait_seconds, workers=arguments.workers, topk=arguments.topk,
        batch_size=arguments.batch_size, linger=arguments.linger_ms / 1000,
        answers={**budget_of(arguments, predictor), **unsure},
    )  # fmt: skip


def serve() -> int:
    """Run `lookupvit serve`."""
    arguments = parse_arguments()
    share_cores()
    with importing():
        from lookupvit_video.processes.pool import start_fork_server

        start_fork_server("lookupvit_video.inference.page.upload")
        try:
            from lookupvit_video.inference.serving import app, server
            from lookupvit_video.inference.serving.service import Service
        except ImportError as error:
            raise UserError(f'serve needs {error.name}: pip install "lookupvit_video[serve]"') from None
        from lookupvit_video.inference.predictor import load_model
        from lookupvit_video.log import setup_logging
    setup_logging()
    predictor = load_model(arguments.checkpoint, arguments.device)
    chosen = serve_options(arguments, predictor)
    plan = predictor.plan.changed(arguments.views, arguments.crops, "pyav", arguments.timeout)
    predictor.plan = plan
    next(predictor.answers([predictor.blank_views()], **chosen.answers))  # options that do not fit are found now
    with server.listen(arguments.host, arguments.port) as listener:
        service = Service(predictor, plan, chosen)
        try:
            about = {"checkpoint": one_line(Path(arguments.checkpoint).name), "classes": len(predictor.classes),
                     "device": str(predictor.device)}  # fmt: skip
            application = app.counted(app.build_app(service, about), service)
            print(f"serving at {server.shown_address(listener)} (Ctrl-C ends it)", flush=True)
            server.run(application, listener, arguments.connections)
        finally:
            service.close()
    logger.info("ended")
    return 0
