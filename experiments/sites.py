"""Which widths of every seed model grow, and which stay and why: tables from `growkit inspect --verify`.

python experiments/sites.py > experiments/results/sites/README.md
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

HEAD = """# What grows in the seed models

```bash
python experiments/sites.py > experiments/results/sites/README.md
```

Each recipe's seed as `growkit inspect FILE --verify` sees it: every site was widened on a perturbed copy, all together,
and the outputs compared in fp32; a change above 1e-5 was accepted because float64 showed that it is rounding (batch
norm over few values). Sites whose names differ in a number share a line."""


def inspected(recipe: Path) -> dict[str, Any]:
    """What the command prints of a recipe's model."""
    command = ["growkit", "inspect", str(recipe), "--verify", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def pattern(name: str) -> str:
    """A name with `*` for the numbers of blocks and layers."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "*", name)


def span(numbers: list[int]) -> str:
    """The least and the largest of some numbers."""
    return f"{min(numbers):,}" if min(numbers) == max(numbers) else f"{min(numbers):,} to {max(numbers):,}"


def section(recipe: Path) -> list[str]:
    """A heading, a sentence and two tables."""
    facts = inspected(recipe)
    sites: dict[str, list[dict[str, Any]]] = {}
    for site in facts["sites"]:
        sites.setdefault(pattern(site["name"]), []).append(site)
    verified = sum(site["verified"] for site in facts["sites"])
    lines = [
        f"## {recipe.stem}: {facts['model']}",
        "",
        f"{facts['params']:,} parameters, {verified} of {len(facts['sites'])} sites verified, which reach "
        f"{facts['reach']:.1%} of the parameters; the outputs changed by {facts['worst_change']:.1e} of their size.",
        "",
        "| site | how many | width | parameters of a unit |",
        "|---|---|---|---|",
    ]
    for name, alike in sites.items():
        widths, costs = [one["channels"] for one in alike], [one["params_per_unit"] for one in alike]
        copies = ", by whole copies" if any(one["by_copies"] for one in alike) else ""
        lines.append(f"| {name} | {len(alike)} | {span(widths)}{copies} | {span(costs)} |")
    lines += ["", "| stays | because it |", "|---|---|"]
    for refusal in facts["refusals"]:
        names = {pattern(name): width for name, width in refusal["widths"]}
        lines.append(f"| {', '.join(f'{name} ({width})' for name, width in names.items())} | {refusal['reason']} |")
    return lines


def main() -> None:
    """Print the page."""
    recipes = [FOLDER / "mlp_teacher_student.yaml", *sorted(FOLDER.glob("*_quarter.yaml"))]
    print("\n".join([HEAD, *(line for recipe in recipes for line in ("", *section(recipe)))]))


if __name__ == "__main__":
    sys.exit(main())
