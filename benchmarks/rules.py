"""The table of docs/methods.md: accuracy on the bench of every rule, layer by layer and share by share.

    python benchmarks/rules.py BENCH --answers rules.jsonl

Prints Markdown. BENCH and the file of answers as in accuracy.py.
"""

from __future__ import annotations

from accuracy import arguments, ask, mean_share, percent, read_questions

RULES = {
    "FastV: last, top-k": "score=last,pick=top-k",
    "all (the paper's text), top-k": "score=all,pick=top-k",
    "last-no-rope, top-k": "score=last-no-rope,pick=top-k",
    "last-no-rope, grid3 (FEATHER's rule)": "score=last-no-rope,pick=grid3",
    "question-mean, top-k": "score=question-mean,pick=top-k",
    "question-max, top-k": "score=question-max,pick=top-k",
    "last, window4": "score=last,pick=window4",
    "question-max, window4": "score=question-max,pick=window4",
    "question-max, window4, merge": "score=question-max,pick=window4,merge",
    "question-max, grid3": "score=question-max,pick=grid3",
    "last, cover": "score=last,pick=cover",
    "question-mean, cover": "score=question-mean,pick=cover",
    "question-max, cover (Recommended)": "score=question-max,pick=cover",
    "question-max, cover, merge": "score=question-max,pick=cover,merge",
    "no score, cover": "score=none,pick=cover",
    "random": "score=random,pick=top-k",
    "uniform": "score=none,pick=uniform",
}
CUTS = [(k, drop) for k in (2, 4, 6) for drop in (0.5, 0.75)]


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    questions = read_questions(args)

    settings = {(name, cut): f"k={cut[0]},drop={cut[1]},{rule}" for name, rule in RULES.items() for cut in CUTS}
    answers = ask(questions, ["off", *settings.values()], args)

    print(f"{len(questions)} questions; unpruned {percent(questions, answers['off'])['percent']:.1f}.\n")
    print("| rule |" + "".join(f" K={k} {drop:.0%} |" for k, drop in CUTS))
    print("|---|" + "--:|" * len(CUTS))
    for name in RULES:
        row = [percent(questions, answers[settings[name, cut]])["percent"] for cut in CUTS]
        print(f"| {name} |" + "".join(f" {value:.1f} |" for value in row))
    shares = [mean_share(answers[settings["FastV: last, top-k", cut]]) for cut in CUTS]
    print("| retained share |" + "".join(f" {share:.3f} |" for share in shares))


if __name__ == "__main__":
    main()
