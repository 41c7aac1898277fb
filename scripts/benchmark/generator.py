"""The generator process: plays one job given on standard input, prints the outcome as JSON."""

from __future__ import annotations

import gc
import resource
import sys
import traceback
from dataclasses import asdict

import msgspec
from scripts.benchmark.scenarios import BY_NAME
from scripts.benchmark.stage import BenchError, Job, Outcome, Stage


def play(job: Job) -> Outcome:
    """Play the job to its end or to where it cannot go on, which the outcome then tells."""
    stage = Stage(job)
    try:
        BY_NAME[job.scenario].play(stage)
    except BenchError as error:
        stage.outcome.notes.append(str(error))
        stage.outcome.complete = False
    finally:
        stage.loop.close()
    return stage.outcome


def raise_file_limit() -> None:
    """Allow this process and its children as many descriptors as the system lets us have."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> int:
    """Play the job on standard input."""
    raise_file_limit()
    gc.freeze()
    gc.disable()  # pauses here would be idle time there
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        outcome = play(job)
    except Exception:  # noqa: BLE001 - the parent tells it
        traceback.print_exc()
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
