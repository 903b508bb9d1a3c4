"""Run the commands that pages show with their output, and compare.

    python docs/check_commands.py README.md docs/data.md
    python docs/check_commands.py --write docs/data.md     put the numbers that are printed now into the page

A block of commands (```bash) that is followed by a block of output (```text) is run from the root of the repository, in the order of the
page. Every line of the output must be printed, in that order. A line `...` stands for any lines. Numbers may differ, as times and last
digits do between machines: such lines are listed. The exit code is 1 if other text differs, or if a
command fails without the error that the page shows.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# At most one line of prose may stand between the two blocks.
SHOWN = re.compile(r"```bash\n((?:(?!```).*\n)+)```\n\n(?:\S.*\n\n)?```text\n((?:(?!```).*\n)+)```")


def compare(shown: str, printed: str) -> tuple[list[str], str]:
    """Return the lines of `shown` that were not printed, and `shown` with the numbers that were printed."""
    lines, start, missing, parts = printed.splitlines(), 0, [], []
    for part in re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE):
        wanted = part.splitlines()
        matches = (i for i in range(start, len(lines)) if [*map(_plain, lines[i : i + len(wanted)])] == [*map(_plain, wanted)])
        if (i := next(matches, None)) is None:
            missing += wanted
            parts.append(part)
        else:
            start = i + len(wanted)
            parts.append("".join(f"{line.rstrip()}\n" for line in lines[i:start]))
    return missing, "...\n".join(parts)


def _plain(line: str) -> str:
    """Return a line without its numbers, units of time, and widths of spaces."""
    line = re.sub(r"[-+]?\d[\d.,]*(e-?\d+)?", "0", line)
    return " ".join(re.sub(r"\b0 (s|min|h 0 min)\b", "0 s", line).split())


def main() -> int:
    failed = False
    for page in (Path(name) for name in sys.argv[1:] if name != "--write"):
        text = page.read_text(encoding="utf-8")
        for commands, shown in SHOWN.findall(text):
            print(f"\n{page}:\n    " + commands.strip().replace("\n", "\n    "), flush=True)
            run = ["bash", "-euo", "pipefail", "-c", commands]
            done = subprocess.run(run, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
            missing, updated = compare(shown, done.stdout)
            for line in missing:
                print(f"not printed: {line}")
            if not missing:
                for before, now in zip(shown.splitlines(), updated.splitlines(), strict=True):
                    if before.split() != now.split():
                        print(f"other numbers: {before}\n          now: {now}")
                text = text.replace(shown, updated)
            if missing or (done.returncode and "error: " not in shown):
                failed = True
                print(f"exit code {done.returncode}, and printed:\n{done.stdout}")
        if "--write" in sys.argv:
            page.write_text(text, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
