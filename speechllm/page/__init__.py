"""A page to talk to a speech LLM: microphone, recordings, chat; it speaks the OpenAI API to whatever serves the model.

`speechllm demo --web`; docs/page.md. Recordings, conversation, client, server, hearing and live turns know neither
Gradio nor a browser; `handlers.py` joins them to the components that `layout.py` arranges.
"""
