"""The training loop. Reading order: ``train``, ``_run_steps``, ``_end_of_epoch``, ``_save``; then ``step.one_step``.

Everything random follows from (RNG_SEED, step, rank), and a checkpoint holds the rest, so a run that was interrupted
anywhere ends as one that was not.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any

from fvcore.common.config import CfgNode

from lookupvit_video.checkpoints.checkpoint import checkpoint_path, save_checkpoint
from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.loader import report_worker_failures
from lookupvit_video.distributed.utilization import utilization
from lookupvit_video.distributed.world import World, gather_objects, in_any_process
from lookupvit_video.drawing.figures import plot_curves
from lookupvit_video.evaluation.evaluate import class_recalls, eval_loader, evaluate
from lookupvit_video.evaluation.metrics import METRICS, rounded, text
from lookupvit_video.evaluation.report import choose_thresholds
from lookupvit_video.log import clock, peak_memory_gib, read_json_lines, record_bad_videos
from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.models.pretexts.pretext import Pretext
from lookupvit_video.preparation.coverage import class_counts
from lookupvit_video.processes.stop_signals import Stopped, StopSignals
from lookupvit_video.training.bad_videos import stop_at_too_many_bad, stop_if_lost
from lookupvit_video.training.output import report_disk_failures
from lookupvit_video.training.pretraining.validation import CURVES, collect_features, report_features
from lookupvit_video.training.run import Run, describe_world, prepare, train_batches
from lookupvit_video.training.step import one_step

logger = logging.getLogger(__name__)


def train(cfg: CfgNode, classes: list[str], world: World) -> None:
    """Train by config; leaves OUTPUT_DIR/model.pt (and best.pt where there is validation), logs and pictures.

    Raises:
        UserError: the config and the data do not fit, found before the first step.
        RunFailure: loss or gradient are not finite, too many videos cannot be read, or the disk cannot be written to.
        Stopped: SIGTERM, SIGUSR1 or SIGINT came; the state of the run is saved.
    """
    with StopSignals(quiet=not world.is_main) as stop, report_disk_failures(cfg.OUTPUT_DIR):
        run = prepare(cfg, classes, world, stop)
        loader = train_batches(run)
        for line in describe_world(
            world, batch_size=cfg.TRAIN.BATCH_SIZE, parts=cfg.TRAIN.ACCUMULATION_STEPS, parallel=cfg.TRAIN.PARALLEL,
            dtype=run.dtype, peak_rate=run.peak_rate, num_videos=len(run.train_videos),
        ):  # fmt: skip
            logger.info("%s", line)
        logger.info(
            "train: %d videos, %d classes, %s %.2f M parameters, %d steps",
            len(run.train_videos), len(classes), cfg.MODEL.ARCH, count_parameters(run.model) / 1e6, run.total_steps,
        )  # fmt: skip
        if cfg.TRAIN.TASK == "classify":
            logger.info("videos a class: %s", class_counts(run.train_videos, classes))
        try:
            with report_worker_failures():
                _run_steps(run, iter(loader))
            _finish(run)
            stopped, interrupted = in_any_process(world, bool(stop.name), stop.interrupted)
            if stopped:  # since the last step: the test that follows takes long
                raise Stopped(
                    f"stopped by {stop.name or 'a signal to another process'}; training is done, the same command "
                    "tests",
                    interrupted,
                )
        finally:
            run.close()


def _run_steps(run: Run, batches: Iterator[Batch]) -> None:
    state = run.state
    state.model.train()
    if state.to_validate:  # the run was stopped at that point
        _end_of_epoch(run)
    while state.step < run.total_steps:
        one_step(run, batches)
        state.step += 1
        within = state.step % state.steps_per_epoch
        if state.step % run.cfg.LOG_PERIOD == 0 or within == 0:
            _report(run)
        stopped, late = in_any_process(run.world, bool(run.stop.name), run.saver.due_by_clock())
        state.to_validate = within == 0
        if stopped:
            _stop(run)
        if state.to_validate:
            _end_of_epoch(run)
        elif late or run.saver.due_by_steps(state.step):
            _save(run)
        run.saver.check()


def _report(run: Run) -> None:
    cfg, log, state, model = run.cfg, run.steps, run.state, run.cfg.MODEL
    log.settle(state.step, tolerant=run.looks_at_each_step)
    state.bad_rows = set().union(*gather_objects(state.bad_rows, run.world))
    stop_at_too_many_bad(run)
    facts, warnings = log.summary(cfg.TRAIN.BATCH_SIZE)
    facts["lr"] = state.optimizer.param_groups[-1]["lr"]
    facts["memory_gib"] = peak_memory_gib(run.world.device)
    frozen = model.FREEZE_ENCODER or model.FREEZE_SPATIAL or model.ADAPTER != "none"  # no complete backward pass
    facts["mfu"] = utilization(0 if frozen else log.macs, facts["step_time"] * log.steps, run.world, run.dtype)
    left = (run.total_steps - state.step) * facts["step_time"]
    epoch = state.step / state.steps_per_epoch
    run.journal.write(
        "train", state.step, epoch=round(epoch, 3), eta_seconds=round(left),
        **{key: float(f"{value:.6g}") for key, value in facts.items() if value is not None},
    )  # fmt: skip
    logger.info(
        "step %d/%d epoch %.2f  loss %.4f  lr %.2e  grad %.2f  %.1f clips/s  %.3f s a step, %.0f %% for data  %s"
        "mem %.2f GiB  eta %s",
        state.step, run.total_steps, epoch, facts["loss"], facts["lr"], facts["grad_norm"], facts["clips_per_second"],
        facts["step_time"], 100 * facts["data_share"], f"MFU {100 * facts['mfu']:.1f} %  " if facts["mfu"] else "",
        facts["memory_gib"], clock(left),
    )  # fmt: skip
    if run.world.is_main:
        for warning in filter(None, [*warnings, run.watch.advice(facts["data_time"], facts["step_time"])]):
            logger.warning("%s", warning)
    run.new_log()


def _end_of_epoch(run: Run) -> None:
    train, state = run.cfg.TRAIN, run.state
    last, epoch = state.step == run.total_steps, state.step // state.steps_per_epoch
    if train.EVAL_PERIOD and (epoch % train.EVAL_PERIOD == 0 or last):
        _validate(run, epoch)
    state.to_validate = False
    if epoch % train.CHECKPOINT_PERIOD == 0 or last or run.saver.due_by_steps(state.step):
        _save(run)
    run.new_log()  # validation does not count as step time


def _save(run: Run) -> None:
    """Begin to write a training checkpoint; all processes must call it."""
    began = time.perf_counter()
    run.saver.write(checkpoint_path(run.folder, run.state.step), run.checkpoint(), is_training_checkpoint=True)
    run.steps.start += time.perf_counter() - began  # saving does not count either


def _stop(run: Run) -> None:
    """Save and leave, since a signal came to at least one of the processes."""
    _save(run)
    run.saver.wait()
    # no process leaves before the checkpoint is complete
    interrupted = any(gather_objects(run.stop.interrupted, run.world))
    raise Stopped(
        f"stopped by {run.stop.name or 'a signal to another process'} after step {run.state.step}; saved "
        f"{checkpoint_path(run.folder, run.state.step)}, the same command resumes from it",
        interrupted,
    )


def _validate(run: Run, epoch: int) -> None:
    """Measure one center view per video, with the averaged weights, if any; the best so far go to best.pt."""
    if isinstance(run.model, Pretext):
        return _validate_features(run, epoch)
    cfg, world, state, videos = run.cfg, run.world, run.state, run.val_videos
    run.saver.wait()  # no fork for the loader's workers while a thread writes
    loader = eval_loader(cfg, videos, world)
    logger.info("epoch %d: validation of %d videos", epoch, len(videos))
    with state.averaged():
        (results,) = evaluate(run.model, run.stop.until_stopped(loader), videos, cfg, world, "validation")
    if any(in_any_process(world, bool(run.stop.name))):
        _stop(run)  # a resumed run validates again from the start
    if results.bad:
        stop_if_lost([videos[row].path for row, _ in results.bad])
    values = results.measure(cfg.TEST.METRICS)
    loss = round(results.measure(["nll"])["nll"], 5)
    run.journal.write("val", state.step, epoch=epoch, loss=loss, **rounded(values, 3), bad=len(results.bad))
    logger.info("epoch %d validation: %s of %d videos", epoch, text(values), len(videos))
    logger.info("epoch %d %s", epoch, class_recalls(results, run.classes))
    if world.is_main:
        listed = results.bad + results.used_damaged
        record_bad_videos(run.folder, [("val", videos[row].path, reason) for row, reason in listed])
    if results.bad and world.is_main:
        logger.warning(
            "%d validation videos cannot be read and count as wrong, see %s", len(results.bad),
            run.folder / "bad_videos.csv",
        )  # fmt: skip
    if results.multi_label:
        rule, target = cfg.TEST.THRESHOLDS, cfg.TEST.THRESHOLD_TARGET
        chosen = choose_thresholds(
            results.probabilities[results.readable], results.labels[results.readable], rule, target
        )
        state.thresholds = chosen.tolist()
    if METRICS[state.best_metric].improves(values[state.best_metric], state.best):
        state.best = values[state.best_metric]
        run.saver.write(run.folder / "best.pt", run.checkpoint(inference=True), is_training_checkpoint=False)


def _validate_features(run: Run, epoch: int) -> None:
    """Measure what the features of a pre-training know of the labels of validation, and whether they collapsed."""
    run.saver.wait()
    batches = run.stop.until_stopped(eval_loader(run.cfg, run.val_videos, run.world))
    features, labels = collect_features(run, batches)
    if any(in_any_process(run.world, bool(run.stop.name))):
        _stop(run)
    report_features(run, epoch, features, labels)


def _finish(run: Run) -> None:
    """Write the results of a finished run; all processes must call it."""
    content = run.checkpoint(inference=True)
    run.saver.wait()
    if run.world.is_main:
        save_checkpoint(run.folder / "model.pt", **content)
        lines = run.journal.lines.path
        train, val = read_json_lines(lines, "train"), read_json_lines(lines, "val")
        plot_curves(train, val, run.folder / "curves.png", **_curves(run))
        logger.info("wrote %s and %s", run.folder / "model.pt", run.folder / "curves.png")
    gather_objects(None, run.world)  # model.pt is there for all processes


def _curves(run: Run) -> dict[str, Any]:
    """Return what ``plot_curves`` draws of validation."""
    if isinstance(run.model, Pretext):
        return CURVES
    best = run.state.best_metric
    return {
        "percentages": [metric.name for metric in run.metrics if metric.percent],
        "others": [metric.name for metric in run.metrics if not metric.percent],
        "best": (best, METRICS[best].higher_is_better),
    }
