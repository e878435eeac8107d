"""Carries out the trial: its training runs in a few processes, each resumable at any moment, into one results file."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, fields
from multiprocessing import get_context
from pathlib import Path

import torch

from ..evaluate import write_results
from ..machine import atomic_write, sha256
from ..model import WEIGHTS, count_parameters, load_model, save_model
from ..sample import Setting
from ..train import NotFiniteError, TrainState, fit
from ..training.checkpoint import resume, save_checkpoint, training_lock
from .trial import ARMS, METRICS, Training, blurry, choose, drawing, plan, score, try_settings
from .trials import _begin_worker

SAVE_MINUTES = 3  # between checkpoints of a training
KEY = tuple(field.name for field in fields(Training))


def key(entry: dict) -> Training:
    """The training that an entry of the results file is of."""
    return Training(**{name: entry[name] for name in KEY})


def weights(trial: Training, scratch: Path, step: int) -> Path:
    """Of a checkpoint on the way. All scores are those of these files, whose numbers are float16."""
    return scratch / trial.name / f"{step:06d}.safetensors"


def train(trial: Training, scratch: Path) -> float:
    """Train to the end, from where an earlier call was stopped. Returns: processor seconds per step of this call.

    Leaves weights(...) of its checkpoints, and the last also as scratch/NAME.safetensors.
    """
    last, folder = trial.checkpoints()[-1], scratch / trial.name
    with training_lock(folder):
        if not weights(trial, scratch, last).exists():
            state = TrainState(trial.recipe())
            resume(folder, state)
            batches, saved = trial.batches(state.model), time.monotonic()
            begun, steps = time.process_time(), 0
            for record in fit(state, batches):
                steps += 1
                if record.step in trial.checkpoints()[:-1]:
                    save_model(state.ema_model, weights(trial, scratch, record.step))
                if time.monotonic() - saved > 60 * SAVE_MINUTES:
                    save_checkpoint(folder, state)
                    saved = time.monotonic()
            (folder / "seconds").write_text(f"{(time.process_time() - begun) / max(steps, 1):.4f}")
            save_model(state.ema_model, scratch / f"{trial.name}.safetensors")
            save_model(state.ema_model, weights(trial, scratch, last))  # from here on, it is done
        for old in folder.glob("checkpoint-*.pt"):
            old.unlink()
    return float((folder / "seconds").read_text())


def work(trial: Training, scratch: Path, setting: Setting | None) -> dict:
    """Train, then score every checkpoint, if the form's setting is known; the reference chooses it.

    Returns: {"rows", "training": its entry}, of the reference also "settings"; without a setting {}.
        After a training that broke off, its entry says why, and there are no rows.
    """
    found: dict = {}
    try:
        seconds = train(trial, scratch)
    except NotFiniteError as error:
        return {"rows": [], "training": asdict(trial) | {"failed": str(error)}}
    begun = time.process_time()
    last = trial.checkpoints()[-1]
    if setting is None and trial.is_reference:
        tried = try_settings(load_model(weights(trial, scratch, last)))
        setting = choose(tried)
        found["settings"] = {"chosen": asdict(setting), "tried": tried}
    if setting is None:
        return found
    rows = []
    for step in trial.checkpoints():
        model = load_model(weights(trial, scratch, step))
        rows += [asdict(trial) | {"step": step} | row for row in score(drawing(trial, model, setting), step == last)]
    cost = {"seconds_a_step": round(seconds, 4), "seconds_of_scoring": round(time.process_time() - begun, 1)}
    size = count_parameters(load_model(weights(trial, scratch, last)))
    return found | {"rows": rows, "training": asdict(trial) | {"parameters": size} | cost}


def score_blurry() -> list[dict]:
    """Rows of the input itself."""
    return [{"form": "", "arm": "blurry", "budget": "", "run": 0, "step": 0} | row for row in score(blurry, last=True)]


class _Here(Executor):
    """Carries out what it is given at once, in this process."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future: Future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextlib.contextmanager
def _executor(workers: int) -> Iterator[Executor]:
    """Processes of one thread each, whose number therefore changes no result."""
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield _Here()
        finally:
            torch.set_num_threads(threads)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def run(
    todo: list[Training],
    record: dict,
    out: Path,
    scratch: Path,
    workers: int,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Do trainings in this order, and write the results file after each.

    Args:
        record: what the file holds besides what is new: "settings", "trainings" and "rows".
        scratch: folder of checkpoints and weights.
    Raises: ValueError if another process works in scratch.
    """
    queue, waiting, running = list(todo), [], {}
    order = {trial: place for place, trial in enumerate(plan())}

    def write() -> None:
        for entries in (record["rows"], record["trainings"]):  # those of the blurry input come first
            entries.sort(key=lambda entry: order.get(key(entry), -1))
        write_results(out, record)

    def next_one() -> Training | None:
        """Those first that are trained and waited for their form's setting."""
        for trial in waiting:
            if trial.form in record["settings"]:
                waiting.remove(trial)
                return trial
        return queue.pop(0) if queue else None

    with training_lock(scratch), _executor(workers) as pool:
        if not record["rows"]:
            record["rows"] = pool.submit(score_blurry).result()
            write()
        while True:
            while len(running) < workers and (trial := next_one()):
                chosen = record["settings"].get(trial.form)
                setting = Setting(**chosen["chosen"]) if chosen else None
                running[pool.submit(work, trial, scratch, setting)] = trial
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial, found = running.pop(future), future.result()
                if "rows" not in found:
                    waiting.append(trial)
                    say(f"{trial.name}: trained; to be scored when the setting of its form is chosen")
                    continue
                if "settings" in found:
                    record["settings"][trial.form] = found["settings"]
                    say(f"{trial.form}: {found['settings']['chosen']}")
                record["rows"] += found["rows"]
                record["trainings"].append(found["training"])
                write()
                say(f"{trial.name}: {_summary(found)}")


def ship(record: dict, scratch: Path) -> list[str]:
    """Copy the weights of run 0 of the main arms, whose scores a results file holds, to the shipped ones, with cards.

    Returns: their names. Weights that another machine trained, so that scratch lacks them, are left as they are.
    """
    names = []
    for entry in record["trainings"]:
        trial = key(entry)
        source = scratch / f"{trial.name}.safetensors"
        if (trial.form, trial.budget, trial.run) != ("eps", "main", 0) or trial.arm not in ARMS or not source.exists():
            continue
        name, recipe, scores = f"trial-{trial.arm}", trial.recipe(), {}
        for row in record["rows"]:
            if key(row) == trial and "ssim" in row:  # of ALL pictures
                means = {metric: {"mean": row[metric]} for metric in METRICS}
                scores[f"{row['domain']} {row['degree']}"] = {trial.arm: means}
        c, target = recipe.training, WEIGHTS / f"{name}.safetensors"
        card = {part: record[part] for part in ("command", "tinymsg", "python", "packages")}
        card |= {"name": name, "sha256": sha256(source), "parameters": entry["parameters"], "config": recipe.to_dict()}
        card |= {"data": f"{c.domain} on {c.content_count} {c.content}", "seed": c.seed, "steps": c.steps}
        write_results(
            target.with_suffix(".json"), card | {"setting": record["settings"]["eps"]["chosen"], "scores": scores}
        )
        with atomic_write(target) as partial:
            shutil.copyfile(source, partial)
        names.append(name)
    return names


def _summary(found: dict) -> str:
    """One line on a training."""
    entry, last = found["training"], [row for row in found["rows"] if "ssim" in row]
    if not last:
        return entry["failed"]
    lpips = ", ".join(f"{row['domain']} {row['degree']} {row['lpips']:.3f}" for row in last)
    return f"{entry['seconds_a_step']} s per step, {entry['seconds_of_scoring']} s of scoring; LPIPS {lpips}"
