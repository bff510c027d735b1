"""The training loop. Reading order: ``train``, ``_run_steps``, ``_end_of_epoch``, ``_save``; then ``step.one_step``.

Everything random follows from (RNG_SEED, step, rank), and a checkpoint holds the rest, so that a run that was
interrupted, wherever, ends as one that was not.
"""

import logging
import time
from collections.abc import Iterator

from fvcore.common.config import CfgNode

from lookupvit_video.checkpoints.checkpoint import checkpoint_path, save_checkpoint
from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.loader import build_eval_loader, report_worker_failures
from lookupvit_video.distributed.world import World, gather_objects, in_any_process
from lookupvit_video.evaluation.evaluate import evaluate
from lookupvit_video.figures import plot_curves
from lookupvit_video.log import clock, peak_memory_gib, read_json_lines, record_bad_videos
from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.processes.stop_signals import Stopped, StopSignals
from lookupvit_video.training.bad_videos import stop_at_too_many_bad, stop_if_lost
from lookupvit_video.training.description import describe_world
from lookupvit_video.training.output import report_disk_failures
from lookupvit_video.training.run import Run, prepare, train_batches
from lookupvit_video.training.step import one_step
from lookupvit_video.training.step_log import StepLog
from lookupvit_video.training.utilisation import utilisation

logger = logging.getLogger(__name__)


def train(cfg: CfgNode, classes: list[str], world: World) -> None:
    """Train by config; leaves OUTPUT_DIR/model.pt (and best.pt where there is validation), logs and pictures.

    Raises:
        UserError: the config and the data do not fit, found before the first step.
        RunFailure: the numbers, too many of the videos, or the disk went bad on the way.
        Stopped: SIGTERM, SIGUSR1 or SIGINT came; where the run stood is saved.
    """
    with StopSignals(quiet=not world.is_main) as stop, report_disk_failures(cfg):
        run = prepare(cfg, classes, world, stop)
        loader = train_batches(run)
        for line in describe_world(cfg, world, len(run.train_videos)).splitlines():
            logger.info("%s", line)
        logger.info(
            "train: %d videos, %d classes, %s %.2f M parameters, %d steps",
            len(run.train_videos), len(classes), cfg.MODEL.ARCH, count_parameters(run.model) / 1e6, run.total_steps,
        )  # fmt: skip
        try:
            with report_worker_failures():
                _run_steps(run, iter(loader))
            _finish(run)
            stopped, interrupted = in_any_process(world, bool(stop.name), stop.interrupted)
            if stopped:  # since the last look: the test that follows takes long
                raise Stopped(
                    f"stopped by {stop.name or 'a signal to another process'}; training is done, the same command "
                    "tests",
                    interrupted,
                )
        finally:
            run.close()


def _run_steps(run: Run, batches: Iterator[Batch]) -> None:
    run.parallel_model.train()
    if run.to_validate:  # the run was stopped at that point
        _end_of_epoch(run)
    while run.step < run.total_steps:
        one_step(run, batches)
        run.step += 1
        within = run.step % run.steps_per_epoch
        if run.step % run.cfg.LOG_PERIOD == 0 or within == 0:
            _report(run)
        stopped, late = in_any_process(run.world, bool(run.stop.name), run.saver.due_by_clock())
        run.to_validate = within == 0
        if stopped:
            _stop(run)
        if run.to_validate:
            _end_of_epoch(run)
        elif late or run.saver.due_by_steps(run.step):
            _save(run)
        run.saver.check()


def _report(run: Run) -> None:
    cfg, log, device = run.cfg, run.steps, run.world.device
    log.settle(run.step, tolerant=run.looks_at_each_step)
    run.bad_rows = set().union(*gather_objects(run.bad_rows, run.world))
    stop_at_too_many_bad(run)
    facts, warnings = log.summary(cfg.TRAIN.BATCH_SIZE)
    facts["lr"] = run.optimizer.param_groups[-1]["lr"]
    facts["memory_gib"] = peak_memory_gib(device)
    facts["mfu"] = utilisation(cfg, log.macs, facts["step_time"] * log.steps, run.world, run.dtype)
    left = (run.total_steps - run.step) * facts["step_time"]
    epoch = run.step / run.steps_per_epoch
    run.journal.write(
        "train", run.step, epoch=round(epoch, 3), eta_seconds=round(left),
        **{key: float(f"{value:.6g}") for key, value in facts.items() if value is not None},
    )  # fmt: skip
    logger.info(
        "step %d/%d epoch %.2f  loss %.4f  lr %.2e  grad %.2f  %.1f clips/s  %.3f s a step, %.0f %% for data  %s"
        "mem %.2f GiB  eta %s",
        run.step, run.total_steps, epoch, facts["loss"], facts["lr"], facts["grad_norm"], facts["clips_per_second"],
        facts["step_time"], 100 * facts["data_share"], f"MFU {100 * facts['mfu']:.1f} %  " if facts["mfu"] else "",
        facts["memory_gib"], clock(left),
    )  # fmt: skip
    if run.world.is_main:
        for warning in filter(None, [*warnings, run.watch.advice(facts["data_time"], facts["step_time"])]):
            logger.warning("%s", warning)
    run.steps = StepLog(run.world, run.train_videos)


def _end_of_epoch(run: Run) -> None:
    cfg, last, epoch = run.cfg, run.step == run.total_steps, run.step // run.steps_per_epoch
    if cfg.TRAIN.EVAL_PERIOD and (epoch % cfg.TRAIN.EVAL_PERIOD == 0 or last):
        _validate(run, epoch)
    run.to_validate = False
    if epoch % cfg.TRAIN.CHECKPOINT_PERIOD == 0 or last or run.saver.due_by_steps(run.step):
        _save(run)
    run.steps = StepLog(run.world, run.train_videos)  # validation is no step time


def _save(run: Run) -> None:
    """Begin to write a training checkpoint; all processes must call it."""
    began = time.perf_counter()
    content = run.training_state()
    run.saver.write(checkpoint_path(run.folder, run.step), content, is_training_checkpoint=True)
    run.steps.start += time.perf_counter() - began  # nor is this


def _stop(run: Run) -> None:
    """Save and leave, for a signal that came to one of the processes at least."""
    _save(run)
    run.saver.wait()
    # no process leaves before the checkpoint is there
    interrupted = any(gather_objects(run.stop.interrupted, run.world))
    raise Stopped(
        f"stopped by {run.stop.name or 'a signal to another process'} after step {run.step}; saved "
        f"{checkpoint_path(run.folder, run.step)}, the same command resumes from it",
        interrupted,
    )


def _validate(run: Run, epoch: int) -> None:
    """One centre view per video, with the averaged weights where there are such; the best so far go to best.pt."""
    cfg, world = run.cfg, run.world
    run.saver.wait()  # no fork for the loader's workers while a thread writes
    loader = build_eval_loader(
        cfg, run.val_videos, num_views=1, num_crops=1, rank=world.rank, world_size=world.size,
        pin_memory=world.device.type == "cuda",
    )  # fmt: skip
    logger.info("epoch %d: validation of %d videos", epoch, len(run.val_videos))
    with run.averaged():
        (results,) = evaluate(run.model, run.stop.until_stopped(loader), run.val_videos, cfg, world, "validation")
    if any(in_any_process(world, bool(run.stop.name))):
        _stop(run)  # it is done again from the start
    if results.bad:
        stop_if_lost([run.val_videos[row].path for row, _ in results.bad])
    top1, top5 = results.top(1), results.top(5)
    run.journal.write("val", run.step, epoch=epoch, top1=round(top1, 3), top5=round(top5, 3), bad=len(results.bad))
    logger.info(
        "epoch %d validation: top-1 %.2f %%, top-5 %.2f %% of %d videos", epoch, top1, top5, len(results.labels)
    )
    if world.is_main:
        listed = results.bad + results.used_damaged
        record_bad_videos(run.folder, [("val", run.val_videos[row].path, reason) for row, reason in listed])
    if results.bad and world.is_main:
        logger.warning(
            "%d validation videos cannot be read and count as wrong, see %s", len(results.bad),
            run.folder / "bad_videos.csv",
        )  # fmt: skip
    if top1 > run.best_top1:
        run.best_top1 = top1
        run.saver.write(run.folder / "best.pt", run.inference_state(), is_training_checkpoint=False)


def _finish(run: Run) -> None:
    """Write what a finished run leaves; all processes must call it."""
    content = run.inference_state()
    run.saver.wait()
    if run.world.is_main:
        save_checkpoint(run.folder / "model.pt", **content)
        lines = run.journal.lines.path
        plot_curves(read_json_lines(lines, "train"), read_json_lines(lines, "val"), run.folder / "curves.png")
        logger.info("wrote %s and %s", run.folder / "model.pt", run.folder / "curves.png")
    gather_objects(None, run.world)  # model.pt is there for all processes
