"""The nano world: a small SpeechLLM trained from scratch on a closed world of spoken requests in six languages."""
