"""How good a speech LLM is: tasks, metrics, text bound and cascade, judge, report.

`speechllm evaluate`, or in Python `evaluate(EvaluationConfig(...))` of `speechllm.evaluation.run`; docs/evaluation.md.
"""
