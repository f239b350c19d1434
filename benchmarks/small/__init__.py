"""The `small` model: Whisper base's encoder, a connector, SmolLM2-135M-Instruct; see the README beside."""
