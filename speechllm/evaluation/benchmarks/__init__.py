"""Builders of the papers' benchmarks: Audio-MLQA (LAD), MTBI's prompt and task generalisation, BLOOMZMMS's tasks.

Each turns data that people have into a folder of rows that `speechllm evaluate` scores, with a card that says what is
in it and what was left out. `lmms_eval` is the other way round: a SpeechLLM as a model of lmms-eval.
"""
