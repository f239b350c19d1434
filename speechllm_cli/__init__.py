"""The `speechllm` command.

It lies beside the `speechllm` package, not in it, because importing that one loads torch and transformers (seconds)
and fails where they are broken: `--help` must be quick, and `doctor` must run exactly where nothing else does. Modules
here import the heavy packages inside functions only.
"""
