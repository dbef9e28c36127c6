"""What a stored teacher saves: time of a step and memory of weights, with and without it.

    python benchmarks/methods/stored_logits.py

times training steps of cct_2_3x2_32 on images of 64 pixels, in alternation: with an
efficientformer_l1 as online teacher, and with its predictions read from a store. The record goes to
results/methods/stored_logits.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

import zoo
from zoo.training.logit_store import LogitStore
from zoo.training.losses import Distillation, StoredDistillation

ROOT = Path(__file__).parents[2]
BATCH, CLASSES = 16, 10


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="a smoke test, without a record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = zoo.create_model("cct_2_3x2_32", num_classes=CLASSES).train()
    teacher = zoo.create_model("efficientformer_l1", num_classes=CLASSES).eval()
    images, targets = torch.randn(BATCH, 3, 64, 64), torch.arange(BATCH) % CLASSES
    base = nn.CrossEntropyLoss()
    with tempfile.TemporaryDirectory() as folder:
        described = {"num_classes": CLASSES, "split": {"images": BATCH}}
        store = LogitStore.create(Path(folder), described, {}, top=CLASSES, half=True)
        with torch.inference_mode():
            store.write(0, [(range(BATCH), teacher(images))])
        online = Distillation(base, teacher, kind="soft", alpha=1.0)
        stored = StoredDistillation(base, store, alpha=1.0)
        keys = [(0, index) for index in range(BATCH)]
        ways = {"online": (online, images), "stored": (stored, keys), "labels": (None, None)}
        times = {way: [] for way in ways}
        for _ in range(3 if options.quick else options.steps):
            for way, (loss, given) in ways.items():
                start = time.process_time()
                logits = student(images)
                value = base(logits, targets) if loss is None else loss(logits, targets, given)
                value.backward()
                times[way].append(time.process_time() - start)
                student.zero_grad()
            start = time.process_time()
            with torch.inference_mode():
                teacher(images)
            times.setdefault("teacher", []).append(time.process_time() - start)
        row = store.row.itemsize
    ms = {way: 1000 * median(found[1:]) / BATCH for way, found in times.items()}
    record = {
        "ms_per_image": ms,
        "images_per_s": {way: 1000 / value for way, value in ms.items()},
        "teacher_mib": sum(4 * p.numel() for p in teacher.parameters()) / 2**20,
        "student_mib": sum(4 * p.numel() for p in student.parameters()) / 2**20,
        "bytes_per_image": row,
        "break_even_students": ms["teacher"] / (ms["online"] - ms["stored"]),
    }
    print(json.dumps(record, indent=1))
    if not options.quick:
        (ROOT / "results/methods/stored_logits.json").write_text(
            json.dumps(record, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
