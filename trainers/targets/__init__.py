"""The LLM answers prompts about transcripts: pools of prompts, sources, backends."""
