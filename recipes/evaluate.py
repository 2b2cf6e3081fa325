"""Evaluation: what a model can do, how sure that is, and what it is beside a baseline, or beside other models.

Every figure has its number of rows, an interval, a baseline where there is a cheap one, and a file of all samples.

    accelerate launch recipes/evaluate.py --model_name_or_path runs/sft/run
    accelerate launch recipes/evaluate.py --models runs/sft/run runs/dpo/run --tasks preference
    accelerate launch recipes/evaluate.py --dataset_name my.jsonl --gate "accuracy>=0.9"

Miller 2024, "Adding Error Bars to Evals" (https://arxiv.org/abs/2411.00640).
"""

from dataclasses import dataclass

import tuner


@dataclass
class EvaluateArguments(tuner.EvaluationArguments):
    """Evaluation of models."""


def main() -> None:
    args = tuner.parse_arguments(EvaluateArguments)
    plan = tuner.plan_evaluation(args)
    outcomes = tuner.evaluate(plan)
    tuner.write_evaluation(plan, outcomes)
    tuner.check_gates(plan, outcomes)


if __name__ == "__main__":
    tuner.run(main)
