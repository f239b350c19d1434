"""How good a speech LLM is: tasks, metrics, text bound and cascade, judge, report."""
