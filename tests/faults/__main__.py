"""Does all faults and counts what was lost: python -m tests.faults [GROUP ...] [--case N].

Writes counts.md and counts.json to a folder. Cases that have passed at this commit are not done again.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import jax
from tqdm import tqdm

from tests.faults.group import GROUPS, load_group
from tests.faults.running import ROOT, Result, run_cases

_BEGIN, _END = "<!-- counts -->", "<!-- end of counts -->"
_SHARE = 50  # cases that a worker does before it ends


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS], metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--case", type=int, help="do this case alone")
    parser.add_argument("--output", type=Path, default=Path("faults"), help="folder of the results (default faults)")
    parser.add_argument("--page", type=Path, help="a page in which to replace the counts, docs/reliability.md")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="workers, one a core")
    options = parser.parse_args()
    names, output = options.groups or GROUPS, options.output
    output.mkdir(parents=True, exist_ok=True)
    log, commit = output / "results.jsonl", _commit()
    passed = {(line["group"], line["case"]) for line in _lines(log) if line["commit"] == commit and not line["error"]}
    cases: dict[str, list[int]] = {}
    for name in names:
        every = [case for case in range(load_group(name).cases) if (name, case) not in passed]
        cases[name] = every if options.case is None else [options.case]
    failures = 0
    with log.open("a") as file, tqdm(total=sum(map(len, cases.values())), unit="case", dynamic_ncols=True) as bar:
        for name, result in _side_by_side(cases, output / "cache", options.processes):
            bar.set_postfix_str(name, refresh=False)
            bar.update()
            print(json.dumps({"group": name, "commit": commit, **result}), file=file, flush=True)
            if result["error"]:
                failures += 1
                bar.write(f"FAILED {result['error']}\n  python -m tests.faults {name} --case {result['case']}")
    if options.case is None:
        _write_counts(output, _lines(log))
        table = (output / "counts.md").read_text(encoding="utf-8")
        print(table)
        if options.page:
            _write_to_page(options.page, table)
    sys.exit(1 if failures else 0)


def _side_by_side(todo: dict[str, list[int]], cache: Path, processes: int) -> Iterator[tuple[str, Result]]:
    """The results of all cases; each worker has a core of its own."""
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[:processes]:
        cores.put(core)
    results: Queue[tuple[str, Result] | BaseException | None] = Queue()

    def work(name: str, cases: list[int]) -> None:
        core = cores.get()
        try:
            for result in run_cases(name, cases, cache / str(core), core=core):
                results.put((name, result))
        except BaseException as error:
            results.put(error)
        finally:
            cores.put(core)

    shares = [(name, cases[at : at + _SHARE]) for name, cases in todo.items() for at in range(0, len(cases), _SHARE)]
    with ThreadPoolExecutor(processes) as pool:
        futures = [pool.submit(work, *share) for share in shares]
        for future in futures:
            future.add_done_callback(lambda _: results.put(None))
        ended = 0
        while ended < len(shares):
            match results.get():
                case None:
                    ended += 1
                case BaseException() as error:
                    for future in futures:
                        future.cancel()
                    raise error
                case result:
                    yield result


def _write_counts(output: Path, lines: list[dict[str, Any]]) -> None:
    """The last result of each case, as a table and as JSON."""
    last = {(line["group"], line["case"]): line for line in lines}
    rows, counts = [], {}
    for name in GROUPS:
        results = [line for (group, _), line in last.items() if group == name]
        if not results:
            continue
        group, failed = load_group(name), [line["case"] for line in results if line["error"]]
        happened: Counter[str] = sum((Counter(line["counts"]) for line in results), Counter())
        commits = sorted({line["commit"] for line in results})
        counts[name] = {
            "cases": len(results),
            "failed": sorted(failed),
            "commits": commits,
            "counts": dict(sorted(happened.items())),
        }
        of = f"{len(results):,}" if len(results) == group.cases else f"{len(results):,} of {group.cases:,}"
        what = ", ".join(f"{key} {number:,}" for key, number in sorted(happened.items()))
        rows.append(f"| {group.fault} | {group.promise} | {of} | {len(failed)} | {what} | {', '.join(commits)} |")
    machine = f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}"
    date = datetime.date.today().isoformat()
    head = ["| fault | what must hold | cases | failed | what happened | commit |", "|---|---|---|---|---|---|"]
    (output / "counts.md").write_text("\n".join([f"{date}, {machine}.", "", *head, *rows, ""]), encoding="utf-8")
    summary = {"date": date, "machine": machine, "groups": counts}
    (output / "counts.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def _write_to_page(page: Path, table: str) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    page.write_text(f"{before}{_BEGIN}\n{table}{_END}{rest.partition(_END)[2]}", encoding="utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short=9", "HEAD") or "unknown") + (" with changes" if changed else "")


def _processor() -> str:
    names = [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
