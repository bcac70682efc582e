"""The tables of docs/methods.md: accuracy on the bench of every rule, layer by layer and share by share.

    python benchmarks/rules.py BENCH --answers rules.jsonl
    python benchmarks/rules.py BENCH --answers rules.jsonl --others --limit 90

Prints Markdown. BENCH and the file of answers as in accuracy.py. --others: the rules that are not in the first table,
and the first and the best of it again, which makes sense on fewer questions.
"""

from __future__ import annotations

from accuracy import arguments, ask, mean_share, percent, read_questions

RULES = {
    "FastV: `last`, `top-k`": "score=last,pick=top-k",
    "`question-max`, `window4`": "score=question-max,pick=window4",
    "`question-max`, `cover`": "score=question-max,pick=cover",
    "**`question-max`, `cover`, `weigh`** (Recommended)": "score=question-max,pick=cover,weigh",
    "`random`": "score=random,pick=top-k",
    "`uniform`": "score=none,pick=uniform",
}
OTHERS = {
    "`all` (the text of FastV's paper), `top-k`": "score=all,pick=top-k",
    "`last-no-rope`, `top-k`": "score=last-no-rope,pick=top-k",
    "`last-no-rope`, `grid3` (FEATHER)": "score=last-no-rope,pick=grid3",
    "`question-mean`, `top-k`": "score=question-mean,pick=top-k",
    "`question-max`, `top-k`": "score=question-max,pick=top-k",
    "`last`, `window4`": "score=last,pick=window4",
    "`question-max`, `window4`, `merge`": "score=question-max,pick=window4,merge",
    "`question-max`, `window4`, `weigh`": "score=question-max,pick=window4,weigh",
    "`none`, `cover`, `weigh`": "score=none,pick=cover,weigh",
    "`last`, `cover`, `weigh`": "score=last,pick=cover,weigh",
}
FIRST, BEST = next(iter(RULES)), list(RULES)[3]
CUTS = [(k, drop) for k in (2, 4, 6) for drop in (0.5, 0.75)]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--others", action="store_true", help="the rules that are not in the first table")
    args = parser.parse_args()
    questions = read_questions(args)

    rules = {FIRST: RULES[FIRST], BEST: RULES[BEST], **OTHERS} if args.others else RULES
    settings = {
        (name, cut): f"k={cut[0]},drop={cut[1]},{rule}" for name, rule in rules.items() for cut in CUTS
    }
    answers = ask(questions, ["off", *settings.values()], args)

    print(f"{len(questions)} questions; unpruned {percent(questions, answers['off'])['percent']:.1f}.\n")
    print("| rule |" + "".join(f" K={k} drop {drop} |" for k, drop in CUTS))
    print("|---|" + "--:|" * len(CUTS))
    for name in rules:
        row = [percent(questions, answers[settings[name, cut]])["percent"] for cut in CUTS]
        print(f"| {name} |" + "".join(f" {value:.1f} |" for value in row))
    shares = [mean_share(answers[settings[FIRST, cut]]) for cut in CUTS]
    print("| retained share, average over the layers |" + "".join(f" {share:.3f} |" for share in shares))


if __name__ == "__main__":
    main()
