"""How the new classifier head should start: at zero, or with the small random weights of torch.nn.Linear.

    python tests/bench/head_table.py [--seeds 1] [--jobs 2]     about 30 CPU minutes; resumes where it broke off

The task and the search for learning rates of scheme_table.py, mini-batches; with the head of zeros its very runs.
"""

from __future__ import annotations

from experiment import RESULTS, Runs, Task, cell, options, print_table, rate_of, write_markdown
from rich.progress import Progress
from scheme_table import MODEL, Deployed, grown, repeated

from tinytrain_lite.train.trainer import Recipe

SCHEMES = ("last", "last-6", "last-12", "49kb", "148kb", "bias", "full")
HEADS = {"head of zeros": (Deployed, "scheme_table.jsonl"), "random head": (Task, "head_table.jsonl")}


def main() -> None:
    arguments = options(__doc__.splitlines()[0], epochs=10, per_class=50)
    plain = Recipe("int8", epochs=arguments.epochs, batch=8)
    rows = [["scheme"], *([scheme] for scheme in SCHEMES)]
    with Progress() as progress:
        for head, (kind, file) in HEADS.items():
            runs = Runs(arguments.results / file, arguments.jobs)
            tasks = [kind(MODEL, "cifar10-subset", seed, arguments.per_class) for seed in range(arguments.seeds)]
            results = repeated(runs, tasks, grown(runs, tasks[0], SCHEMES, plain, progress), plain, progress)
            rows[0] += [head, "rate"]
            for row, scheme in zip(rows[1:], SCHEMES, strict=True):
                row += [cell(results[scheme]), rate_of(results[scheme])]
    print_table(f"{MODEL}, CIFAR-10 subset: test accuracy in %", rows)
    write_markdown(RESULTS / "head_table.md", rows)


if __name__ == "__main__":
    main()
