"""Accuracy of a model on pictures and questions, setting by setting: ``pyfastv eval``.

>>> dataset = load_dataset("questions.jsonl")
>>> answers = ask_all(dataset.questions, ["off", "recommended"], AnswerFile("answers.jsonl"), Asking())
>>> evaluate(dataset.questions, answers, dataset.scorer).to_dict()
"""

from .answers import AnswerFile, Given
from .asking import Asking, ask_all
from .evaluation import Evaluation, Result, evaluate
from .layouts import LAYOUTS, load_dataset
from .plot import plot
from .question import Dataset, Question
from .scorers import SCORERS, score_answers
from .timing import Timing, time_settings

__all__ = [
    "LAYOUTS",
    "SCORERS",
    "AnswerFile",
    "Asking",
    "Dataset",
    "Evaluation",
    "Given",
    "Question",
    "Result",
    "Timing",
    "ask_all",
    "evaluate",
    "load_dataset",
    "plot",
    "score_answers",
    "time_settings",
]
