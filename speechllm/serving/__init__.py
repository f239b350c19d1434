"""Serving: engines that people already run, told what a SpeechLLM is."""
