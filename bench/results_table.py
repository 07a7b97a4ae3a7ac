"""docs/RESULTS.md, made from what `natural_instructions.py` measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

_CLASSES = {
    "majority": "majority",
    "zero_shot": "zero-shot",
    "few_shot": "few-shot",
    "few_shot_labels": "label scores",
    "few_shot_bias_removed": "bias removed",
    "few_shot_channel": "channel",
    "few_shot_both": "labels and channel",
    "examples_only": "examples only",
    "examples_only_bias_removed": "examples only, bias removed",
    "expert": "expert",
    "expert_bias_removed": "expert, bias removed",
    "gold": "200 gold",
}
_TEXT = {
    "copy": "copy",
    "zero_shot": "zero-shot",
    "few_shot": "few-shot",
    "examples_only": "examples only",
    "expert": "expert",
    "gold": "200 gold",
}
_FACTS = ("trainings", "pairs", "numbers", "minutes")
_HEAD = """# Results on Natural Instructions

Tasks of [Natural Instructions](https://github.com/allenai/natural-instructions), run as a user
would run them: the definition and the positive examples are all that the method sees; {rows}
evaluation instances each. Measured by

```bash
{commands}
```

Exact match for classification (label sets found in the definition), word-level ROUGE-L for text.
*few-shot* is the best of three prompt templates, chosen on the evaluation rows in its favour; *bias
removed* takes each label's mean score over synthetic inputs from its score; *examples only* is LoRA
on the definition's own examples; *200 gold* is LoRA on 200 right answers, a ceiling that needs
labelled data (– where all instances are evaluated; its mean is over the others). The *expert*
columns are what `python -m selfguide.run` made, as the mean of so many *trainings* on the pairs and
(+ examples) of one on the examples alone: of one alone where the row is older than those means
(2026-11-26, docs/LOG.md). *pairs* is what the filters left of the candidates; *minutes* are of one
or two threads of machines that had other work too (task199's hold a pause of 88), in bfloat16 where
they compute in it. Intervals are 95 % bootstrap intervals of the expert's score: single rows say
little and the means more. Bold: the best system without labelled data.
"""


def write_results(source: Path, page: Path) -> None:
    """Writes the page from the JSON results."""
    results = list(json.loads(source.read_text(encoding="utf-8")).values())
    models = sorted({each["model"] for each in results})
    commands = "\n".join(
        f"python bench/natural_instructions.py FOLDER --model {name}" for name in models
    )
    rows = sorted({each["rows"] for each in results})
    parts = [_HEAD.format(rows=" or ".join(map(str, rows)), commands=commands)]
    for model in models:
        ours = [each for each in results if each["model"] == model]
        parts.append(f"## {model}\n")
        for kind, columns in (("classification", _CLASSES), ("text", _TEXT)):
            chosen = [each for each in ours if each["kind"] == kind]
            if chosen:
                parts.append(_table(chosen, columns))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts), encoding="utf-8")


def _table(results: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    titles = ["task", *columns.values(), "95 %", *_FACTS]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    lines += [_row(each, columns) for each in results]
    if len(results) > 1:
        columned = [[each["scores"][key] for each in results] for key in columns]
        means = [f"{mean(s for s in scores if s is not None):.1f}" for scores in columned]
        lines.append(f"| *mean* | {' | '.join(means)} |{' |' * (len(_FACTS) + 1)}")
    return "\n".join(lines) + "\n"


def _row(result: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    scores = result["scores"]
    best = max(scores[key] for key in columns if key != "gold")
    cells = [_cell(scores[key], key != "gold" and scores[key] == best) for key in columns]
    low, high = result["expert_interval"]
    minutes = sum(result["seconds"].values()) / 60
    pairs = f"{result['pairs']} of {result['candidates']}"
    name = result["task"].replace("_", " ")
    facts = [result["expert_of"], pairs, result["precision"], f"{minutes:.1f}"]
    ends = [f"{low:.0f}-{high:.0f}", *facts]
    return f"| {' | '.join([name, *cells, *ends])} |"


def _cell(score: float | None, best: bool) -> str:
    if score is None:
        return "–"
    return f"**{score:.1f}**" if best else f"{score:.1f}"
