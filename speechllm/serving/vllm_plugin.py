"""vLLM plugin: `vllm serve FOLDER` for a SpeechLLM, where this package is installed beside vLLM.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). The model is its Transformers
backend's, which runs encoder and connector as they are and the LLM with its own attention.
"""


def register() -> None:
    """Tells transformers and vLLM of the model; safe to call again."""
    from vllm import ModelRegistry

    import speechllm  # noqa: F401  (registers the Auto classes)

    # By name: the class is imported where it is needed, as it would initialise the accelerator here.
    ModelRegistry.register_model("SpeechLLMForConditionalGeneration", "speechllm.serving.vllm_model:SpeechLLMForVLLM")


__all__ = ["register"]
