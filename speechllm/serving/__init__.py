"""Serving a SpeechLLM by engines that exist: transformers' own server, behind OpenAI's API."""
