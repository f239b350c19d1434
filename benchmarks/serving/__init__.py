"""Servers of a SpeechLLM, measured by requests as their clients send them."""
