"""SLURM: put a job that was told to stop back into the queue (docs/cluster.md)."""

import os
import subprocess

from zoo.errors import first_line

SECONDS = 60  # that scontrol may take; the job has little time left


def job_id() -> str | None:
    """Return the id of this SLURM job, of this task in an array of jobs; None outside SLURM."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{key}") for key in ("JOB_ID", "TASK_ID"))
    if array and task:  # the id of its last task is that of the whole array
        return f"{array}_{task}"
    return os.environ.get("SLURM_JOB_ID")


def requeue() -> str:
    """Put this job back into the queue, and return in words what happened."""
    job = job_id()
    if job is None:
        return "not requeued: this is not a SLURM job"
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the SLURM job {job} was not requeued: {first_line(error)}"
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"scontrol ended with {done.returncode}"
        return f"the SLURM job {job} was not requeued: {reason}"
    return f"requeued the SLURM job {job}"
