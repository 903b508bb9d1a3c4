"""Run the commands that pages show with their output, and compare.

    python docs/check_commands.py README.md docs/data.md

A block of commands (```bash) that is followed by a block of output (```text) is run from the root of the repository, page by page in
order. Every line of the output must be printed, in that order; a line `...` stands for any lines, and the numbers may differ, as
times and last digits differ between machines: they are listed. Exit code 1 if other text differs, or a command fails.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# At most one line of prose may stand between the two blocks.
SHOWN = re.compile(r"```bash\n((?:(?!```).*\n)+)```\n\n(?:\S.*\n\n)?```text\n((?:(?!```).*\n)+)```")


def differences(shown: str, printed: str) -> tuple[list[str], list[str]]:
    """Return the shown lines that were not printed, and those that were printed with other numbers."""
    lines, start, missing, other_numbers = printed.splitlines(), 0, [], []
    for part in re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE):
        wanted = part.splitlines()
        matches = (i for i in range(start, len(lines)) if [*map(plain, lines[i : i + len(wanted)])] == [*map(plain, wanted)])
        if (i := next(matches, None)) is None:
            missing += wanted
            continue
        pairs = zip(wanted, lines[i : i + len(wanted)], strict=True)
        other_numbers += [f"{line}\n        now: {now}" for line, now in pairs if line.split() != now.split()]
        start = i + len(wanted)
    return missing, other_numbers


def plain(line: str) -> str:
    """Return a line without its numbers and the widths of its spaces."""
    return " ".join(re.sub(r"[-+]?\d[\d.,]*(e-?\d+)?", "0", line).split())


def main() -> int:
    failed = False
    for page in sys.argv[1:]:
        for commands, shown in SHOWN.findall((ROOT / page).read_text(encoding="utf-8")):
            print(f"\n{page}:\n    " + commands.strip().replace("\n", "\n    "), flush=True)
            run = ["bash", "-euo", "pipefail", "-c", commands]
            done = subprocess.run(run, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
            missing, other_numbers = differences(shown, done.stdout)
            for kind, lines in (("not printed", missing), ("other numbers", other_numbers)):
                for line in lines:
                    print(f"{kind}: {line}")
            if missing or done.returncode:
                failed = True
                print(f"exit code {done.returncode}, and printed:\n{done.stdout}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
